"""Which examples belong to a step: a pure function of (seed, step).

The examples are laid out as one endless sequence, shuffled anew in each epoch, and step t takes the `batch_size`
positions from `t * batch_size` on, across an epoch's end where they do not divide. `BalancedOrder` lays them out so
that all classes come equally often.
"""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of one epoch.

    Sorting the raw words of a counter-based generator, whose output NumPy guarantees never to change, where the
    streams of `Generator.permutation` may change with its version.

    Args:
      seed: of the run.
      epoch: from 0.
      count: how many examples there are.

    Returns:
      A permutation of 0..count-1, int64 [count]; not to be written to.
    """
    order = _permutation(seed, epoch, count)
    order.setflags(write=False)
    return order


def _permutation(seed: int, stream: int, count: int) -> np.ndarray:
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable")


def step_indices(step: int, *, batch_size: int, seed: int, count: int) -> np.ndarray:
    """The examples of one step's global batch.

    Args:
      step: from 0.
      batch_size: of the global batch.
      seed: of the run.
      count: how many examples there are.

    Returns:
      Positions in the source, int64 [batch_size].
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    indices = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        indices[here] = epoch_order(seed, epoch, count)[positions[here] - epoch * count]
    return indices


def part_of_step(
    step: int, *, rows: int, seed: int, count: int, part: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """What one of several hosts shows in a step where each shuffles a part of its own: every `parts`-th example.

    Args:
      step: from 0.
      rows: of the batch that the host takes.
      seed: of the run.
      count: examples of all parts.
      part: the host's number.
      parts: how many hosts there are.

    Returns:
      Positions in the source, int64 [rows], and the epoch of its part that each is shown in, int32 [rows].
    """
    own = len(range(part, count, parts))
    positions = np.arange(step * rows, (step + 1) * rows)
    indices, epochs = np.empty(rows, np.int64), positions // own
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        # Another stream than that of the whole, and of every other part.
        order = epoch_order(seed, epoch + ((part + 1) << 32), own)
        indices[here] = part + parts * order[positions[here] - epoch * own]
    return indices, epochs.astype(np.int32)


def step_epochs(step: int, *, batch_size: int, count: int) -> np.ndarray:
    """The epoch, from 0, that each example of one step's global batch belongs to: int32 [batch_size]."""
    return (np.arange(step * batch_size, (step + 1) * batch_size) // count).astype(np.int32)


_ROUND = 1024  # positions of a round, at least: changed, runs would go on with other examples
# Streams of the balanced order, apart from those of epochs and of hosts' parts.
_ROUNDS, _WITHIN, _CLASS_BITS = 1 << 63, 1 << 62, 40


class BalancedOrder:
    """An endless sequence in which every class with images comes equally often.

    It is cut into rounds. In each, every class comes the same number of times, at places that are shuffled, so that
    the class of a position is uniform; a round has 1,024 positions or more, so that neighbours, which mixup mixes, are
    nearly independent. How often a class came before a position then follows from the round's number alone, and no
    position needs those before it. Within a class the images come in a shuffled order, which is gone through whole
    before a new one begins: that is an epoch of the class, and of its images.
    """

    def __init__(self, seed: int, labels: np.ndarray) -> None:
        """Sorts the images by class.

        Args:
          seed: of the run, not negative.
          labels: class of each image, int [N].
        """
        self._seed = seed
        by_class = np.argsort(labels, kind="stable")
        self._classes, starts = np.unique(labels[by_class], return_index=True)
        self._members = np.split(by_class, starts[1:])
        self._times = -(-_ROUND // len(self._classes))  # that a class comes in a round
        self._round = functools.lru_cache(maxsize=2)(self._make_round)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # of each class the last one: as many numbers as images

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples at some positions of the sequence.

        Args:
          positions: from 0, int [B]: those of step t are `t * batch_size` and those after it.

        Returns:
          Positions in the source, int64 [B], and the epoch of each, int32 [B]: how often the order of its class was
          gone through before. No example comes twice in an epoch of its own.
        """
        indices, epochs = np.empty(len(positions), np.int64), np.empty(len(positions), np.int32)
        length = self._times * len(self._classes)
        rounds, places = np.divmod(positions, length)
        for number in np.unique(rounds).tolist():
            here = np.flatnonzero(rounds == number)
            members, ranks = (values[places[here]].tolist() for values in self._round(number))
            for row, member, rank in zip(here.tolist(), members, ranks, strict=True):
                shown = number * self._times + rank
                epochs[row], place = divmod(shown, len(self._members[member]))
                indices[row] = self._order(member, int(epochs[row]))[place]
        return indices, epochs

    def epochs_between(self, start: int, end: int) -> int:
        """How many epochs of the smallest class the positions from `start` to before `end` touch, at most."""
        length, smallest = self._times * len(self._classes), min(map(len, self._members))
        first, last = start // length * self._times, ((end - 1) // length + 1) * self._times - 1
        return last // smallest - first // smallest + 1

    def _make_round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The class (a position in `_members`) at each place of a round, and how often it came in it before."""
        count = len(self._classes)
        members = _permutation(self._seed, _ROUNDS + number, self._times * count) % count
        ranks = np.empty_like(members)
        ranks[np.argsort(members, kind="stable")] = np.tile(np.arange(self._times), count)
        return members, ranks

    def _order(self, member: int, epoch: int) -> np.ndarray:
        """The images of a class in the order of one of its epochs."""
        known = self._orders.get(member)
        if known is None or known[0] != epoch:
            images = self._members[member]
            stream = _WITHIN + (int(self._classes[member]) << _CLASS_BITS) + epoch
            known = self._orders[member] = (epoch, images[_permutation(self._seed, stream, len(images))])
        return known[1]
