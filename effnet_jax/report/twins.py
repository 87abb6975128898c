"""Images that are in a data set more than once, with different labels."""

import collections
import dataclasses
from collections.abc import Mapping

from effnet_jax.data.duplicates import Place, equal_groups, similar_pairs
from effnet_jax.data.sources.base import Source

SIMILAR = 20_000  # images of all splits, up to which they are also compared by what they look like
SECONDS = 20.0  # of each of the two searches


@dataclasses.dataclass(frozen=True)
class Twin:
    """One of a pair: its split, its position there, and the name of its label."""

    split: str
    index: int
    label: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images that are the same, with different labels; `equal`: to the bit, else by their looks."""

    first: Twin
    second: Twin
    equal: bool


@dataclasses.dataclass(frozen=True)
class Twins:
    """The pairs, equal ones first, what was not searched, and whether anything was."""

    pairs: tuple[Pair, ...] = ()
    notes: tuple[str, ...] = ()
    searched: bool = True


def find_twins(sources: Mapping[str, Source], seconds: float = SECONDS) -> Twins:
    """Finds images with two labels, within a split and across.

    Args:
      sources: by split.
      seconds: for each search, after which it stops and says so.
    """
    notes: list[str] = []
    pairs: list[Pair] = []

    def add(first: Place, second: Place, equal: bool) -> None:
        sides = [Twin(one.split, one.index, sources[one.split].class_names[one.label]) for one in (first, second)]
        if sides[0].label != sides[1].label:
            pairs.append(Pair(sides[0], sides[1], equal))

    try:
        for group in equal_groups(sources, seconds):
            by_label: dict[int, Place] = collections.OrderedDict()
            for one in group:
                by_label.setdefault(one.label, one)
            first, *others = by_label.values()
            for other in others:
                add(first, other, True)
    except TimeoutError:
        notes.append(f"Not all files were compared: that would take more than {seconds:.0f} s.")
    known = {frozenset((pair.first, pair.second)) for pair in pairs}
    total = sum(len(source) for source in sources.values())
    if total > SIMILAR:
        notes.append(f"Only equal files were looked for: comparing {total:,} images by their looks would take long.")
        return Twins(tuple(pairs), tuple(notes))
    try:
        for first, second in similar_pairs(sources, seconds):
            before = len(pairs)
            add(first, second, False)
            if len(pairs) > before and frozenset((pairs[-1].first, pairs[-1].second)) in known:
                pairs.pop()
    except TimeoutError:
        notes.append(f"Not all images were compared by their looks: that would take more than {seconds:.0f} s.")
    return Twins(tuple(pairs), tuple(notes))
