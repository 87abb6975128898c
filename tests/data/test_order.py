"""Balanced sampling: every class comes equally often, and any position is known without those before it."""

import numpy as np
import pytest

from effnet_jax.data.order import BalancedOrder

SIZES = {0: 300, 1: 7, 2: 1, 4: 40}  # of class 3 there is no image
LABELS = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values()))).astype(np.int32)


def test_every_class_comes_equally_often_and_all_its_images_do():
    indices, epochs = BalancedOrder(0, LABELS).at(np.arange(8 * 1024))
    shown = LABELS[indices]
    assert np.bincount(shown).tolist() == [2048, 2048, 2048, 0, 2048]
    for label, size in SIZES.items():
        of_class = indices[shown == label]
        whole = of_class[: len(of_class) // size * size].reshape(-1, size)
        for order in whole:
            assert sorted(order) == np.flatnonzero(label == LABELS).tolist()
        assert len({tuple(order) for order in whole[:5]}) == (min(5, len(whole)) if size > 1 else 1)  # shuffled anew
        assert epochs[shown == label].tolist() == (np.arange(2048) // size).tolist()


def test_the_balanced_order_is_pinned():
    # A run that is resumed under a later NumPy must go on with the same examples.
    order = BalancedOrder(0, np.repeat([0, 1, 3], [2, 5, 40]))
    indices, epochs = order.at(np.arange(12))
    assert indices.tolist() == [22, 19, 0, 1, 46, 36, 2, 14, 42, 28, 1, 0]
    assert epochs.tolist() == [0] * 10 + [1, 1]
    indices, epochs = order.at(np.arange(5000, 5008))
    assert indices.tolist() == [1, 6, 0, 20, 2, 0, 4, 39]
    assert epochs.tolist() == [835, 333, 835, 41, 333, 836, 333, 41]
    indices, _ = BalancedOrder(7, np.repeat([0, 1, 3], [2, 5, 40])).at(np.arange(10**6, 10**6 + 6))
    assert indices.tolist() == [6, 5, 3, 1, 2, 0]


def test_any_position_is_known_by_itself():
    whole = np.stack(BalancedOrder(3, LABELS).at(np.arange(5000)))
    order = BalancedOrder(3, LABELS)
    for positions in (np.arange(4000, 5000), np.arange(1000), np.array([2048, 17, 4999, 3])):  # back and forth
        assert np.array_equal(np.stack(order.at(positions)), whole[:, positions])
    late = np.arange(10**9, 10**9 + 64)
    assert np.array_equal(np.stack(order.at(late)), np.stack(BalancedOrder(3, LABELS).at(late)))
    assert not np.array_equal(np.stack(BalancedOrder(4, LABELS).at(np.arange(5000))), whole)


@pytest.mark.parametrize("classes", [2, 10])
def test_neighbours_are_of_one_class_as_often_as_by_chance(classes):
    labels = np.repeat(np.arange(classes), 50)
    indices, _ = BalancedOrder(0, labels).at(np.arange(20_000))
    first, second = labels[indices].reshape(-1, 2).T  # the pairs that mixup mixes
    assert np.mean(first == second) == pytest.approx(1 / classes, abs=0.02)


def test_more_classes_than_a_round_has_places():
    labels = np.arange(1500)
    indices, epochs = BalancedOrder(0, labels).at(np.arange(3000))
    assert sorted(indices[:1500]) == sorted(indices[1500:]) == labels.tolist()
    assert epochs.tolist() == [0] * 1500 + [1] * 1500


def test_epochs_of_the_smallest_class_between_two_steps():
    order = BalancedOrder(0, np.repeat([0, 1], [4, 400]))
    for start, end in ((0, 10), (0, 1024), (1000, 1100), (5000, 9000)):
        indices, epochs = order.at(np.arange(start, end))
        touched = len(set(epochs[indices < 4].tolist()))
        assert touched <= order.epochs_between(start, end) <= touched + 2 * 1024 / 2 / 4
    assert BalancedOrder(0, np.repeat([0, 1], [4000, 4000])).epochs_between(0, 100) == 1
