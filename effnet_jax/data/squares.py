"""Decoded squares of photographs that are kept in memory, where a whole set fits: it is decoded once."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Squares:
    """The squares of one source at one size: one array, which fills as examples are asked for. Threads share it."""

    def __init__(self, count: int, size: int, part: tuple[int, int] = (0, 1)) -> None:
        """Takes the room.

        Args:
          count: examples of the source.
          size: side in pixels.
          part: (number, parts): of the examples every `parts`-th, from `number` on, has room; others are not kept.
        """
        self._part, self._parts = part
        room = len(range(self._part, count, self._parts))
        self.image = np.empty((room, size, size, 3), np.uint8)
        self.aspect = np.empty(room, np.float32)
        self.label = np.empty(room, np.int32)
        self.there = np.zeros(room, bool)

    def give(self, positions: np.ndarray, out: Mapping[str, np.ndarray]) -> bool:
        """Fills rows with squares where all of them are there. Returns whether they are."""
        rows = (positions - self._part) // self._parts
        if not self.there[rows].all():
            return False
        np.take(self.image, rows, axis=0, out=out["image"])
        out["aspect"][:], out["label"][:], out["index"][:] = self.aspect[rows], self.label[rows], positions
        return True

    def keep(self, index: int, image: np.ndarray, aspect: float, label: int) -> None:
        """Adds a square, where it has room. That it is there is noted last: another thread may be looking."""
        row, other = divmod(index - self._part, self._parts)
        if other:  # stands in for an image of this part that cannot be decoded
            return
        self.image[row], self.aspect[row], self.label[row] = image, aspect, label
        self.there[row] = True


class SquareCache:
    """Keeps the squares of one training source at one size; those of another have had their time."""

    def __init__(self, gib: float) -> None:
        """Takes no room yet.

        Args:
          gib: the bound.
        """
        self.gib = gib
        self._of: tuple[Any, ...] = ()
        self._squares: Squares | None = None

    def of(self, source: Any, size: int, part: tuple[int, int] = (0, 1)) -> Squares | None:
        """Returns what is kept of a source of photographs, or of a part of it; None where they do not fit."""
        room = len(range(part[0], len(source), part[1])) * size * size * 3
        if source.fixed_shape is not None or room > self.gib * 2**30:
            return None
        wanted = (source, size, part)
        if self._squares is None or self._of[0] is not source or self._of[1:] != wanted[1:]:
            self._squares = None  # the old ones go before the new ones take their room
            self._of, self._squares = wanted, Squares(len(source), size, part)
        return self._squares
