"""Pictures of an evaluation."""

import io

import numpy as np
import pytest
from PIL import Image

from effnet_jax.metrics.figures import confusion_matrix
from effnet_jax.metrics.pictures import draw_confusions
from tests.report.made import answers


def _pixels(picture):
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))


def test_a_dollar_in_the_name_of_a_class_is_a_dollar():
    given = answers(np.eye(2), [0, 1])
    formula, plain = (draw_confusions(given, names) for names in (("$_$", "US$ or A$"), ("cat", "dog")))
    assert _pixels(formula).shape == _pixels(plain).shape


def test_very_many_classes_need_no_matrix_of_all():
    labels = np.arange(2000) * 20
    given = answers(np.eye(6)[np.zeros(2000, int)], np.zeros(2000, int))
    given = type(given)(**{**vars(given), "label": labels, "top": labels[:, None] + np.arange(5), "classes": 40_000})
    matrix = confusion_matrix(given, 27)
    assert matrix.shape == (1482, 1482) and matrix.sum() == np.trace(matrix) == 2000
    assert _pixels(draw_confusions(given, [str(index) for index in range(40_000)])).shape[0] > 1000


@pytest.mark.parametrize("fold", [1, 2, 5])
def test_classes_that_share_a_cell_are_neighbours(fold):
    given = answers([[0.1, 0.7, 0.2, 0, 0], [0, 0, 0, 0.9, 0.1]], [0, 4])
    size = -(-5 // fold)
    expected = np.zeros((size, size), int)
    expected[0 // fold, 1 // fold] += 1
    expected[4 // fold, 3 // fold] += 1
    np.testing.assert_array_equal(confusion_matrix(given, fold), expected)
