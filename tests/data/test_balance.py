"""What classes of very different size count, and what is said of them."""

import numpy as np
import pytest

from effnet_jax.data.balance import balanced_order, class_weights, words_on_balance
from effnet_jax.data.sources.arrays import from_arrays
from effnet_jax.data.sources.base import EncodedSource
from effnet_jax.errors import ConfigError, DataError


def source(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return from_arrays(np.zeros((len(labels), 4, 4, 3), np.uint8), labels, ("cat", "dog", "eel")[: len(counts)])


def test_balanced_is_the_inverse_of_the_sizes_with_a_mean_of_one():
    train = source([30, 10, 5])
    weights = class_weights("balanced", train)
    np.testing.assert_allclose(weights, [0.5, 1.5, 3.0])
    assert weights[train.labels].mean() == pytest.approx(1)
    np.testing.assert_allclose(class_weights("balanced", source([6, 3, 0])), [0.75, 1.5, 1.0])
    assert class_weights("", train) is None


def test_a_table_keeps_its_ratios_with_a_mean_of_one():
    train = source([30, 10, 5])
    weights = class_weights({"eel": 4.0, "dog": 2}, train)
    assert weights[2] / weights[0] == pytest.approx(4) and weights[1] / weights[0] == pytest.approx(2)
    assert weights[train.labels].mean() == pytest.approx(1)
    with pytest.raises(ConfigError, match="'eal', which is no class: did you mean 'eel'"):
        class_weights({"eal": 2.0}, train)
    with pytest.raises(ConfigError, match="class_weights is 0 for every class that .* has images of"):
        class_weights({"cat": 0, "dog": 0.0}, source([6, 3, 0]))


def test_the_mean_is_one_over_what_is_shown():
    train = source([30, 10, 5])
    weights = class_weights({"eel": 4.0}, train, "balanced")
    np.testing.assert_allclose(weights, [0.5, 0.5, 2.0])
    indices, _ = balanced_order(0, train).at(np.arange(3 * 342))
    assert weights[train.labels[indices]].mean() == pytest.approx(1)


@pytest.mark.parametrize(
    "use", [lambda source: class_weights("balanced", source), lambda source: balanced_order(0, source)]
)
def test_labels_that_stand_in_the_records_alone(use):
    with pytest.raises(DataError, match="would have to read all of them: take an image folder, or (class_w|sampling=)"):
        use(EncodedSource("pets", [], ("a", "b")))


def test_what_is_said():
    assert words_on_balance(source([10, 12, 11]), False) == []
    (line,) = words_on_balance(source([30, 10, 15]), False)
    assert line == "images per class: 10 (dog) to 30 (cat), median 15"
    advice = words_on_balance(source([300, 30, 50]), False)[1]
    assert "class_weights='balanced'" in advice and "sampling='balanced'" in advice
    assert len(words_on_balance(source([300, 30, 50]), True)) == 1
    assert len(words_on_balance(source([30, 10, 0]), False)) == 1  # what has no image cannot come more often
