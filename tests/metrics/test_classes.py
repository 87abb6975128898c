"""Which class of a model each class of a data set is."""

import numpy as np
import pytest

from effnet_jax.errors import DataError
from effnet_jax.metrics.classes import match_classes, wordnet_ids
from effnet_jax.weights.metadata import Metadata, imagenet_class_names


def _metadata(classes, names=()):
    return Metadata("b0", "imagenet", "imagenet", "pad32", 224, classes, tuple(names))


def test_by_name_in_any_order_and_fewer():
    metadata = _metadata(3, ["cat", "dog", "emu"])
    np.testing.assert_array_equal(match_classes(metadata, ["emu", "cat"], "here"), [2, 0])


def test_imagenets_folders_by_wordnet_id():
    names = imagenet_class_names(1000)
    for count, offset in ((1000, 0), (1001, 1)):
        metadata = _metadata(count, imagenet_class_names(count))
        found = match_classes(metadata, ["n01440764", "n02123045"], "here")
        np.testing.assert_array_equal(found, [0 + offset, 281 + offset])
        assert len(wordnet_ids(count)) == count
    assert (names[0], names[281]) == ("tench", "tabby")


def test_a_model_without_names_counts():
    np.testing.assert_array_equal(match_classes(_metadata(2), ["a", "b"], "here"), [0, 1])
    with pytest.raises(DataError, match="3 classes, the weights tell 2 apart"):
        match_classes(_metadata(2), ["a", "b", "c"], "here")


def test_classes_of_other_data_are_named():
    with pytest.raises(DataError, match=r"do not know: 'dogs', 'fox' \(2 of 3; near 'dogs': 'dog'\)"):
        match_classes(_metadata(3, ["cat", "dog", "emu"]), ["cat", "dogs", "fox"], "here")
