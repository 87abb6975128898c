"""What classes of very different size count, and what is said of them."""

import numpy as np
import pytest

from effnet_jax.data.balance import class_weights, words_on_balance
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


def test_labels_that_stand_in_the_records_alone():
    with pytest.raises(DataError, match="would have to read all of them"):
        class_weights("balanced", EncodedSource("pets", [], ("a", "b")))


def test_what_is_said():
    assert words_on_balance(source([10, 12, 11]), "") == []
    (line,) = words_on_balance(source([30, 10, 15]), "")
    assert line == "images per class: 10 (dog) to 30 (cat), median 15"
    assert "class_weights='balanced'" in words_on_balance(source([300, 30, 50]), "")[1]
    assert len(words_on_balance(source([300, 30, 50]), "balanced")) == 1
