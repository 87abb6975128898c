"""The largest batch that fits, by few compilations: each takes minutes."""

import bisect
import math
from collections.abc import Callable

from effnet_jax.tpu.report import Report

GRAIN = 8  # images: rows of a TPU's tiles
PRECISION = 32  # parts of a batch that are not worth another compilation
TRIES = 16


def largest_batch(measure: Callable[[int], Report], first: int, most: int, multiple: int = 1) -> Report:
    """Finds the largest batch of a chip that fits: a multiple of 8, of 16 from 512 on, of 32 from 1024 on, and so on.

    Where 8 are too many, it is 4, 2 or 1. From a first guess it doubles, or halves; then it goes to where a straight
    line through the memory of two sizes meets the chip's, or where that does not get on, to the middle between what
    fits and what does not, until these are neighbours.

    Args:
      measure: compiles for a number of images a chip.
      first: the first guess.
      most: the most images a chip that make sense.
      multiple: what the batch of a chip must be a multiple of (`microbatches`).

    Returns:
      The report of the largest that fits; of the smallest, where none does.
    """
    sizes = _sizes(max(most, multiple), multiple)
    index = max(0, bisect.bisect_right(sizes, first) - 1)
    low, high = -1, len(sizes)  # the largest that fits, the smallest that does not
    reports: list[Report] = []
    fitting = failing = None
    for _ in range(TRIES):
        report = measure(sizes[index])
        crept = report.fits and index == low + 1
        if report.fits:
            low, fitting = index, report
        else:
            high, failing = index, report
        reports.append(report)
        if high - low <= 1:
            break
        if fitting is None:
            target = sizes[high] // 2
        elif failing is None:
            doubled = 2 * sizes[low]
            target = doubled if crept or len(reports) < 2 else min(_meets(*reports[-2:]) or doubled, 4 * doubled)
        else:
            stuck = len(reports) > 2 and report.fits == reports[-2].fits  # the line misses on one side
            middle = (sizes[low] + sizes[high]) // 2
            target = middle if stuck else _meets(fitting, failing) or middle
        index = min(max(bisect.bisect_right(sizes, target) - 1, low + 1), high - 1)
    return fitting or reports[-1]


def _sizes(most: int, multiple: int) -> list[int]:
    """The batches to choose from, in rising order."""
    grain = math.lcm(GRAIN, multiple)
    sizes = [size for size in (multiple * 2**power for power in range(3)) if size < grain and grain % size == 0]
    size = grain
    while size <= most:
        sizes.append(size)
        size += grain * max(1, 2 ** ((size // grain).bit_length() - 1) // PRECISION)
    return [size for size in sizes if size <= most]


def _meets(one: Report, other: Report) -> int:
    """The batch at which a line through the memory of two batches meets the chip's; 0 where it does not rise."""
    slope = (other.bytes_per_chip - one.bytes_per_chip) / (other.images_per_chip - one.images_per_chip)
    return int(one.images_per_chip + (one.usable_bytes - one.bytes_per_chip) / slope) if slope > 0 else 0
