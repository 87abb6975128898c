"""Figures of a model's answers: accuracies with their intervals, classes, confusions, calibration."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from effnet_jax.metrics.answers import Answers
from effnet_jax.metrics.calibration import Reliability, reliability

_SURE = 1.959964  # standard deviations of a 95 % interval

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What N answers come to. Shares are in 0..1; intervals hold 95 %; what nothing is known of is NaN.

    Attributes:
      count: N.
      top1: share whose likeliest class is right; `top1_interval` by Wilson's score.
      top5: share whose right class is among the five likeliest.
      balanced: mean of the recalls of the classes that occur.
      loss: mean cross entropy in nats.
      reliability: answers by confidence.
      untempered: the same without the weights' temperature.
      support: examples of each class, int64 [classes].
      predicted: how often each is answered, int64 [classes].
      hits: how often it is answered rightly, int64 [classes].
      confusions: (right class, answer, how often), the most frequent first, only wrong ones.
    """

    count: int
    top1: float
    top1_interval: Interval
    top5: float
    top5_interval: Interval
    balanced: float
    balanced_interval: Interval
    loss: float
    loss_interval: Interval
    reliability: Reliability
    untempered: Reliability
    support: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray
    confusions: tuple[tuple[int, int, int], ...]

    @property
    def recall(self) -> np.ndarray:
        """Share of a class's examples that are recognised, [classes]."""
        return _share(self.hits, self.support)

    @property
    def precision(self) -> np.ndarray:
        """Share of a class's answers that are right, [classes]."""
        return _share(self.hits, self.predicted)

    def as_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Returns plain numbers, lists and dicts; None for what nothing is known of."""
        bins, edges = self.reliability, self.reliability.edges
        recall, precision = self.recall, self.precision
        return {
            "count": self.count,
            **{
                name: _plain(getattr(self, name))
                for name in ("top1", "top1_interval", "top5", "top5_interval", "balanced", "balanced_interval")
            },
            "loss": _plain(self.loss),
            "loss_interval": _plain(self.loss_interval),
            "ece": _plain(bins.ece),
            "ece_without_temperature": _plain(self.untempered.ece),
            "reliability": [
                {
                    "from": float(edges[i]),
                    "to": float(edges[i + 1]),
                    "count": int(bins.count[i]),
                    "confidence": _plain(bins.confidence[i]) if bins.count[i] else None,
                    "accuracy": _plain(bins.accuracy[i]) if bins.count[i] else None,
                }
                for i in range(len(bins.count))
            ],
            "classes": [
                {
                    "class": class_names[index],
                    "count": int(self.support[index]),
                    "predicted": int(self.predicted[index]),
                    "recall": _plain(recall[index]),
                    "recall_interval": _plain(wilson(int(self.hits[index]), int(self.support[index]))),
                    "precision": _plain(precision[index]),
                }
                for index in range(len(self.support))
            ],
            "confusions": [
                {"class": class_names[right], "predicted": class_names[answer], "count": count}
                for right, answer, count in self.confusions
            ],
        }


def figures(answers: Answers) -> Figures:
    """Sums answers up."""
    count, classes = len(answers), answers.classes
    label, answer = answers.label, answers.top[:, 0]
    among = (answers.top == label[:, None]).any(1)
    support = np.bincount(label, minlength=classes)
    hits = np.bincount(label[answers.correct], minlength=classes)
    recall = _share(hits, support)[support > 0]
    balanced = float(recall.mean()) if len(recall) else math.nan
    # Half a hit and half a miss more (Jeffreys): few images, all right, would seem certain.
    likely = (hits + 0.5) / (support + 1)
    variance = (likely * (1 - likely) / (support + 1))[support > 0]
    spread = _SURE * math.sqrt(float(variance.sum())) / max(len(recall), 1)
    loss = float(answers.loss.mean(dtype=np.float64)) if count else math.nan
    error = _SURE * float(answers.loss.std(dtype=np.float64)) / math.sqrt(count) if count else math.nan
    correct, top5 = int(answers.correct.sum()), int(among.sum())
    return Figures(
        count=count,
        top1=_ratio(correct, count),
        top1_interval=wilson(correct, count),
        top5=_ratio(top5, count),
        top5_interval=wilson(top5, count),
        balanced=balanced,
        balanced_interval=(max(0.0, balanced - spread), min(1.0, balanced + spread)) if count else (math.nan,) * 2,
        loss=loss,
        loss_interval=(max(0.0, loss - error), loss + error) if count else (math.nan,) * 2,
        reliability=reliability(answers.probability[:, 0], answers.correct),
        untempered=reliability(answers.untempered, answers.correct),
        support=support,
        predicted=np.bincount(answer, minlength=classes),
        hits=hits,
        confusions=confusions(label, answer),
    )


def confusions(label: np.ndarray, answer: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """Returns (right class, answer, how often) of wrong answers, the most frequent first."""
    wrong = label != answer
    pairs, counts = np.unique(np.stack([label[wrong], answer[wrong]], 1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts))
    return tuple((int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order)


def confusion_matrix(answers: Answers, fold: int = 1) -> np.ndarray:
    """Counts by right class (rows) and answer (columns), int64 [classes, classes].

    Args:
      answers: of a model.
      fold: how many neighbouring classes share a row and a column: of very many classes the matrix would be huge.
    """
    classes = -(-answers.classes // fold)
    places = answers.label // fold * classes + answers.top[:, 0] // fold
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes)


def wilson(hits: int, count: int) -> Interval:
    """The 95 % interval of a share; NaN of nothing. Source: Wilson (1927), without continuity correction."""
    if not count:
        return math.nan, math.nan
    share, z = hits / count, _SURE**2 / count
    middle = (share + z / 2) / (1 + z)
    half = _SURE * math.sqrt(share * (1 - share) / count + z / (4 * count)) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(value: float, digits: int = 1) -> str:
    """Returns a share as readers want it: `78.3 %`."""
    return f"{100 * value:.{digits}f} %"


def _ratio(part: int, count: int) -> float:
    return part / count if count else math.nan


def _share(part: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, part / np.maximum(count, 1), np.nan)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None
