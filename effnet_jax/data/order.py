"""Which examples belong to a step: a pure function of (seed, step).

The examples are laid out as one endless sequence, shuffled anew in each epoch, and step t takes the `batch_size`
positions from `t * batch_size` on, across an epoch's end where they do not divide.
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
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)
    return order


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
