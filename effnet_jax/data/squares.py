"""Decoded squares of photographs that are kept in memory, where a whole set fits: it is decoded once."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Squares:
    """The squares of one source at one size: one array, which fills as examples are asked for. Threads share it."""

    def __init__(self, count: int, size: int) -> None:
        """Takes the room.

        Args:
          count: examples.
          size: side in pixels.
        """
        self.image = np.empty((count, size, size, 3), np.uint8)
        self.aspect = np.empty(count, np.float32)
        self.label = np.empty(count, np.int32)
        self.there = np.zeros(count, bool)

    def give(self, positions: np.ndarray, out: Mapping[str, np.ndarray]) -> bool:
        """Fills rows with squares where all of them are there. Returns whether they are."""
        if not self.there[positions].all():
            return False
        np.take(self.image, positions, axis=0, out=out["image"])
        out["aspect"][:], out["label"][:], out["index"][:] = self.aspect[positions], self.label[positions], positions
        return True

    def keep(self, index: int, image: np.ndarray, aspect: float, label: int) -> None:
        """Adds a square. That it is there is noted last: another thread may be looking."""
        self.image[index], self.aspect[index], self.label[index] = image, aspect, label
        self.there[index] = True


class SquareCache:
    """Keeps the squares of one training source at one size; those of another have had their time."""

    def __init__(self, gib: float) -> None:
        """Takes no room yet.

        Args:
          gib: the bound.
        """
        self.gib = gib
        self._source: Any = None
        self._size = 0
        self._squares: Squares | None = None

    def of(self, source: Any, size: int) -> Squares | None:
        """Returns what is kept of a source of photographs; None where they do not fit."""
        if source.fixed_shape is not None or len(source) * size * size * 3 > self.gib * 2**30:
            return None
        if self._source is not source or self._size != size or self._squares is None:
            self._squares = None  # the old ones go before the new ones take their room
            self._source, self._size, self._squares = source, size, Squares(len(source), size)
        return self._squares
