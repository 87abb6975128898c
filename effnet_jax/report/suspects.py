"""Examples worth a look: the worst mistakes, and labels that are likely wrong."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from effnet_jax.metrics.answers import Answers


@dataclasses.dataclass(frozen=True)
class Suspect:
    """An example whose label is likely wrong.

    Attributes:
      split: that it is in.
      row: of the split's answers.
      other: the class that it more likely is.
      probability: of its label: the lower, the likelier is an error.
    """

    split: str
    row: int
    other: int
    probability: float


def worst_mistakes(answers: Answers, count: int) -> np.ndarray:
    """Returns the rows of wrong answers with the highest loss, the worst first."""
    wrong = np.flatnonzero(~answers.correct)
    return wrong[np.argsort(-answers.loss[wrong], kind="stable")][:count]


def self_confidence(answers: Answers) -> np.ndarray:
    """Returns how sure the model is of each class where it is the label: mean probabilities, float64 [classes].

    Of a class without an example it is the mean over all examples.
    """
    support = np.bincount(answers.label, minlength=answers.classes)
    sums = np.bincount(answers.label, weights=answers.label_probability, minlength=answers.classes)
    overall = float(answers.label_probability.mean(dtype=np.float64)) if len(answers) else 0.0
    return np.where(support > 0, sums / np.maximum(support, 1), overall)


def label_errors(answers: Mapping[str, Answers]) -> list[Suspect]:
    """Finds labels that are likely wrong in splits that the model was not trained on.

    An example counts as of the likeliest class whose probability reaches that class's self-confidence; where that is
    another one than its label, the label is suspect. The one of the lowest probability comes first. Only the answers
    that are kept of each example (its five likeliest classes) are looked at.

    Args:
      answers: by split.

    Source: Northcutt, Jiang and Chuang, Confident Learning (2021): the confident joint's off-diagonal, ranked by
      self-confidence.
    """
    found = []
    for split, of in answers.items():
        if not len(of):
            continue
        sure = of.probability >= self_confidence(of)[of.top]
        first = sure.argmax(1)  # the likeliest comes first
        rows = np.arange(len(of))
        other = of.top[rows, first]
        for row in np.flatnonzero(sure.any(1) & (other != of.label)).tolist():
            found.append(Suspect(split, row, int(other[row]), float(of.label_probability[row])))
    return sorted(found, key=lambda suspect: suspect.probability)


def spread(answers: Answers, count: int) -> np.ndarray:
    """Returns rows that stand for the others: of as many classes as there are, evenly over each, in their order."""
    if not len(answers):
        return np.zeros(0, np.int64)
    order = np.argsort(answers.label, kind="stable")
    places = (np.arange(min(count, len(order))) + 0.5) * len(order) / min(count, len(order))
    return order[places.astype(np.int64)]
