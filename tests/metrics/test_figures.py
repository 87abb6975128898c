"""Figures of answers against a second implementation: scikit-learn's."""

import functools
import math

import numpy as np
import pytest
from sklearn import metrics

from effnet_jax.metrics.answers import Answers, gather_answers, make_answer_step
from effnet_jax.metrics.calibration import TEMPERATURES, fit_temperature, reliability
from effnet_jax.metrics.figures import confusion_matrix, figures, wilson

CLASSES, COUNT = 12, 700


def _softmax(logits):
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def said():
    """Logits [N, classes] in float32 and labels [N]; the last class never occurs."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES - 1, COUNT)
    logits = random.normal(0, 2, (COUNT, CLASSES)).astype(np.float32)
    logits[np.arange(COUNT), labels] += 2
    return logits, labels


def _answers(logits, labels, batch=64, classes=CLASSES, temperature=1.0):
    """Through the step, in padded batches."""
    import jax

    step = jax.jit(make_answer_step(lambda variables, batch: batch["image"]))
    rows = []
    for start in range(0, len(labels), batch):
        some = logits[start : start + batch]
        space = batch - len(some)
        rows.append(
            jax.device_get(
                step(
                    (None, np.float32(temperature)),
                    {
                        "image": np.pad(some, ((0, space), (0, 0))),
                        "label": np.pad(labels[start : start + batch], (0, space)).astype(np.int32),
                        "index": np.pad(np.arange(start, start + len(some)), (0, space), constant_values=-1),
                        "mask": np.pad(np.ones(len(some), np.float32), (0, space)),
                    },
                )
            )
        )
    return gather_answers(rows, classes)


def test_every_figure_is_that_of_a_second_implementation(said):
    logits, labels = said
    found = figures(_answers(logits, labels))
    shares, answer, every = _softmax(logits.astype(np.float64)), logits.argmax(1), list(range(CLASSES))
    assert found.count == COUNT
    assert found.top1 == metrics.accuracy_score(labels, answer)
    assert found.top5 == metrics.top_k_accuracy_score(labels, logits, k=5, labels=every)
    there = metrics.recall_score(labels, answer, labels=range(CLASSES - 1), average="macro")
    assert found.balanced == pytest.approx(there)  # balanced_accuracy_score warns of the class that never occurs
    assert found.loss == pytest.approx(metrics.log_loss(labels, shares, labels=every), rel=1e-6)
    precision, recall, _, support = metrics.precision_recall_fscore_support(
        labels, answer, labels=every, zero_division=np.nan
    )
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_array_equal(found.support, support)
    matrix = confusion_matrix(_answers(logits, labels))
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, answer, labels=every))
    right, other, count = found.confusions[0]
    assert count == (matrix - np.diag(np.diag(matrix))).max() == matrix[right, other]
    assert sum(count for _, _, count in found.confusions) == (labels != answer).sum()


def test_calibration_is_that_of_the_definition(said):
    logits, labels = said
    shares = _softmax(logits.astype(np.float64))
    confidence, correct = shares.max(1), logits.argmax(1) == labels
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert reliability(confidence, correct).ece == pytest.approx(error)
    assert figures(_answers(logits, labels)).reliability.ece == pytest.approx(error, abs=1e-6)


def _loss(logits, labels, temperature):
    return metrics.log_loss(labels, _softmax(logits / temperature), labels=list(range(CLASSES)))


def test_an_answer_that_is_no_number_has_no_confidence():
    found = reliability(np.array([np.nan, 0.5]), np.array([True, False]))
    assert found.count.sum() == 1 and found.ece == 0.5 and np.isfinite(found.confidence).all()


def test_a_temperature_is_found(said):
    from scipy.optimize import minimize_scalar

    logits, labels = said
    for scale in (0.4, 1.0, 1.7):
        scaled = (scale * logits).astype(np.float32)
        loss = functools.partial(_loss, scaled.astype(np.float64), labels)
        best = minimize_scalar(loss, bounds=(0.26, 3.9), method="bounded", options={"xatol": 1e-6}).x
        found = fit_temperature(_answers(scaled, labels).tempered, COUNT)
        assert found.value == pytest.approx(best, rel=2e-3)
        assert found.before == pytest.approx(loss(1.0), rel=5e-5)
        assert found.after == pytest.approx(loss(best), rel=5e-5)
        assert found.after <= found.held_out
    assert found.helps
    cooler = _answers((3 * logits).astype(np.float32), labels, temperature=3.0)
    as_it_was = _answers(logits, labels)
    np.testing.assert_allclose(cooler.probability, as_it_was.probability, rtol=1e-4)
    np.testing.assert_allclose(cooler.loss, as_it_was.loss, rtol=1e-4, atol=1e-5)
    assert (cooler.untempered >= cooler.probability[:, 0]).all() and figures(cooler).untempered.ece > 0.01
    assert fit_temperature(np.full((2, len(TEMPERATURES)), np.nan), COUNT) is None
    odd = _answers(scaled, labels).tempered * np.array([[0.0], [1.0]])  # no example at an even position could be read
    assert fit_temperature(odd, COUNT) is None


def test_a_temperature_that_only_fits_its_own_examples_does_not_help():
    """Perfectly calibrated: what is gained on one half is lost on the other."""
    random = np.random.default_rng(3)
    logits = random.normal(0, 1, (4000, 3)).astype(np.float32)
    labels = np.array([random.choice(3, p=row / row.sum()) for row in _softmax(logits.astype(np.float64))])
    found = fit_temperature(_answers(logits, labels, classes=3).tempered, len(labels))
    assert abs(found.value - 1) < 0.1
    assert found.held_out > found.before - 2e-4


def test_intervals():
    low, high = wilson(90, 100)
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)  # as statsmodels.proportion_confint has it
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == pytest.approx(1)
    assert all(math.isnan(side) for side in wilson(0, 0))


def test_few_images_that_are_all_right_are_not_certain():
    """The mean of recalls is about as sure as the share of all images where classes are of one size."""
    for each, low in ((5, 0.74), (500, 0.99)):
        labels = np.repeat([0, 1], each)
        found = figures(_answers(np.eye(2, dtype=np.float32)[labels], labels, classes=2))
        assert found.balanced == 1 and low < found.balanced_interval[0] < 0.999 and found.balanced_interval[1] == 1
    random = np.random.default_rng(0)
    labels = np.arange(2000) % 4
    answers = np.where(random.random(2000) < 0.8, labels, (labels + 1) % 4)
    found = figures(_answers(np.eye(4, dtype=np.float32)[answers], labels, classes=4))
    assert found.balanced_interval == pytest.approx(found.top1_interval, abs=1e-3)


def test_nothing_answered_is_no_error():
    found = figures(_answers(np.zeros((0, 3), np.float32), np.zeros(0, int), classes=3))
    told = found.as_json(["a", "b", "c"])
    assert told["count"] == 0 and told["top1"] is None and told["ece"] == 0


def test_fewer_than_five_classes():
    answers = _answers(np.eye(3, dtype=np.float32), np.array([0, 1, 1]), classes=3)
    assert isinstance(answers, Answers) and answers.top.shape == (3, 3)
    assert figures(answers).top5 == 1.0
