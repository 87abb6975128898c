"""Which examples a page shows."""

import numpy as np

from effnet_jax.report.suspects import label_errors, self_confidence, spread, worst_mistakes
from tests.report.made import answers, guesses


def test_the_worst_mistakes_are_wrong_and_come_by_their_loss():
    found = answers([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.99, 0.01], [0.3, 0.7]], [0, 0, 0, 1, 1])
    assert worst_mistakes(found, 10).tolist() == [3, 1, 2]
    assert worst_mistakes(found, 1).tolist() == [3]
    assert worst_mistakes(answers(np.eye(3), [0, 1, 2]), 5).tolist() == []


def test_a_label_is_suspect_where_another_class_is_as_likely_as_its_own_examples_are():
    # Class 0 is answered with 0.8 where it is the label, class 1 with 0.45 (and unsure), class 2 never occurs.
    shares = [[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.5, 0.4, 0.1], [0.1, 0.6, 0.3], [0.9, 0.05, 0.05]]
    labels = [0, 0, 1, 1, 0, 1]
    found = answers(shares, labels)
    expected = [np.mean([0.8, 0.8, 0.1]), np.mean([0.5, 0.4, 0.05]), np.mean([0.8, 0.8, 0.5, 0.4, 0.1, 0.05])]
    np.testing.assert_allclose(self_confidence(found), expected, atol=1e-6)
    suspects = label_errors({"test": found})
    # Example 3 is a mistake too, but class 0 is not as likely there as where it is the label; its own class is.
    assert [(one.row, one.other) for one in suspects] == [(5, 0), (4, 1)]
    assert [round(one.probability, 3) for one in suspects] == [0.05, 0.1]


def test_planted_errors_are_found_before_honest_mistakes_in_all_splits():
    planted, known = {}, {}
    for split, seed in (("validation", 1), ("test", 2)):
        shares, labels = guesses(400, 10, seed, sure=4.0)
        wrong = np.random.default_rng(seed).choice(400, 20, replace=False)
        labels[wrong] = (labels[wrong] + 1 + wrong % 9) % 10
        planted[split], known[split] = set(wrong.tolist()), answers(shares, labels)
    first = label_errors(known)[:20]
    assert sum(one.row in planted[one.split] for one in first) >= 19
    assert {one.split for one in first} == {"validation", "test"}


def test_nothing_to_suspect():
    assert label_errors({}) == [] and label_errors({"test": answers(np.zeros((0, 3)), np.zeros(0, int))}) == []
    assert label_errors({"test": answers(np.eye(4), np.arange(4))}) == []


def test_examples_are_spread_over_the_classes():
    labels = np.repeat(np.arange(5), 20)
    found = answers(np.eye(5)[labels], labels)
    assert sorted(labels[spread(found, 10)].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert spread(answers(np.eye(3), [0, 1, 2]), 10).tolist() == [0, 1, 2]
    assert len(spread(answers(np.zeros((0, 3)), np.zeros(0, int)), 10)) == 0
