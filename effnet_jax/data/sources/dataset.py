"""A data set, opened once: its classes, its splits, and a source for any expression of them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from effnet_jax.data.sources.base import Source

ALPHABETICAL = ("",)  # an order of classes to keep: that of runs which did not write theirs down


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set of any kind.

    Attributes:
      name: what messages call it.
      class_names: one for each class.
      sizes: number of images by split, of those that were asked for.
      open: from a split expression to its source.
      notes: what its user should know, such as files that were not read.
    """

    name: str
    class_names: tuple[str, ...]
    sizes: Mapping[str, int]
    open: Callable[[str], Source] = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()

    def split(self, expression: str) -> Source:
        """Opens a split expression.

        Args:
          expression: such as `"train[:90%]"` (`splits.parse_split`).

        Raises:
          DataError: no such split, or one of no images.
        """
        return self.open(expression)


def class_order(names: Collection[str], kept: Sequence[str] = ()) -> tuple[str, ...]:
    """The order of classes.

    Args:
      names: of the classes.
      kept: an order that is taken where it has the same names; or `ALPHABETICAL`.

    Returns:
      By number where all are whole numbers, else alphabetical.
    """
    if sorted(kept) == sorted(names):
        return tuple(kept)
    if tuple(kept) != ALPHABETICAL and all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
