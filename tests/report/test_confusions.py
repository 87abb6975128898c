"""The order of classes in the matrix, and what its picture says."""

import numpy as np

from effnet_jax.report.confusions import draw_matrix, order_by_confusion


def test_classes_that_are_mistaken_for_each_other_stand_together():
    random = np.random.default_rng(0)
    hidden = random.permutation(30)
    groups = np.empty(30, int)
    groups[hidden] = np.arange(30) // 5
    matrix = 90 * np.eye(30, dtype=int) + 2 * (groups[:, None] == groups[None]) + (random.random((30, 30)) < 0.02)
    order = order_by_confusion(matrix)
    assert sorted(order.tolist()) == list(range(30))
    assert np.count_nonzero(np.diff(groups[order])) == 5  # each group is one stretch


def test_what_is_not_confused_stays_in_its_order():
    assert order_by_confusion(np.diag([3, 4, 5])).tolist() == [0, 1, 2]
    assert order_by_confusion(np.zeros((2, 2), int)).tolist() == [0, 1]
    assert order_by_confusion(np.array([[7]])).tolist() == [0]


def test_the_most_confused_ends_meet():
    matrix = np.zeros((4, 4), int)
    matrix[0, 1] = matrix[2, 3] = 10  # two pairs …
    matrix[1, 3] = 5  # … whose second classes are alike
    np.fill_diagonal(matrix, 20)
    order = order_by_confusion(matrix).tolist()
    assert abs(order.index(1) - order.index(3)) == 1


def test_a_cell_says_which_class_was_taken_for_which():
    drawn = draw_matrix(np.array([[9, 1], [0, 4]]), ("<cat>", "dog"))
    assert "&lt;cat&gt; taken for dog: 1 (10 %)" in drawn and "dog recognised: 4 (100 %)" in drawn
    assert "dog taken for" not in drawn and "<cat>" not in drawn
