"""How far probabilities can be believed, and the temperature that makes them more so."""

import dataclasses

import numpy as np

# Where the loss is looked at: from a quarter to four, ten per doubling.
TEMPERATURES = tuple(float(t) for t in 2.0 ** (np.arange(-20, 21) / 10).round(6))
BINS = 15  # of confidence, as Guo et al. (2017) count


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Examples by how sure the model was: [bins] each.

    Attributes:
      edges: of the bins, [bins + 1] from 0 to 1.
      count: examples in each.
      confidence: their mean probability of the likeliest class; 0 where there are none.
      accuracy: the share of them that was right; 0 where there are none.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy, weighed by examples."""
        total = max(int(self.count.sum()), 1)
        return float(np.sum(self.count * np.abs(self.confidence - self.accuracy)) / total)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Sorts examples into bins of equal width by their confidence.

    Args:
      confidence: probability of the likeliest class, [N] in 0..1; what is no number is left out.
      correct: whether it was the right one, bool [N].
      bins: how many.

    Source: Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks (2017).
    """
    known = np.isfinite(confidence)
    confidence, correct = np.asarray(confidence)[known], np.asarray(correct)[known]
    edges = np.linspace(0.0, 1.0, bins + 1)
    # A bin holds its upper edge, as in the paper.
    place = np.clip(np.ceil(np.asarray(confidence, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=np.asarray(of, np.float64), minlength=bins) for of in (confidence, correct)]
    means = [total / np.maximum(count, 1) for total in sums]
    return Reliability(edges, count, means[0], means[1])


@dataclasses.dataclass(frozen=True)
class Temperature:
    """What one scalar can do for the loss of a split.

    Attributes:
      value: the temperature of the lowest loss.
      before: mean loss as it is.
      after: mean loss at `value`.
      held_out: mean loss of each half at the temperature of the other: what is to be expected elsewhere.
    """

    value: float
    before: float
    after: float
    held_out: float

    @property
    def helps(self) -> bool:
        """Whether the loss falls on examples that the temperature was not fitted on."""
        return self.held_out < self.before


def fit_temperature(tempered: np.ndarray, count: int) -> Temperature | None:
    """Finds the temperature of the lowest loss, between the points that were looked at by a parabola.

    Args:
      tempered: summed loss of even and of odd examples at each of `TEMPERATURES`, [2, T].
      count: of examples.

    Returns:
      None where one of the halves has no example, or the losses are no numbers.
    """
    if not tempered.any(1).all() or not np.isfinite(tempered).all():
        return None
    best = _lowest(tempered.sum(0))
    elsewhere = sum(_at(tempered[half], _lowest(tempered[1 - half])) for half in (0, 1))
    before = _at(tempered.sum(0), 1.0)
    return Temperature(best, before / count, _at(tempered.sum(0), best) / count, elsewhere / count)


def _lowest(losses: np.ndarray) -> float:
    """The temperature where a parabola through the lowest point and its neighbours is lowest."""
    middle = int(np.argmin(losses))
    if middle in (0, len(losses) - 1):
        return TEMPERATURES[middle]
    left, here, right = losses[middle - 1 : middle + 2]
    bend = left - 2 * here + right
    step = 0.5 * (left - right) / bend if bend > 0 else 0.0
    width = np.log(TEMPERATURES[1] / TEMPERATURES[0])
    return float(TEMPERATURES[middle] * np.exp(step * width))


def _at(losses: np.ndarray, temperature: float) -> float:
    """The loss at a temperature, by the parabola through the three points around it."""
    logs = np.log(TEMPERATURES)
    place = float(np.log(temperature))
    middle = int(np.clip(np.argmin(np.abs(logs - place)), 1, len(logs) - 2))
    step = (place - logs[middle]) / (logs[1] - logs[0])
    left, here, right = losses[middle - 1 : middle + 2]
    return float(here + 0.5 * (right - left) * step + 0.5 * (left - 2 * here + right) * step**2)
