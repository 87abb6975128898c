"""Examples of a source as rows of a batch: what their arrays are, and how rows of them are filled.

NumPy, Pillow and simplejpeg only: worker processes import this and nothing more.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from effnet_jax.data.preprocess import training_square
from effnet_jax.data.sources.base import ArraySource, Source
from effnet_jax.data.squares import Squares
from effnet_jax.data.view import EvaluationView
from effnet_jax.errors import DataError

Bad = list[tuple[str, str]]  # id and error of images that were skipped
Fields = dict[str, tuple[tuple[int, ...], Any]]  # by name the shape of a row, and its type
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainingExamples:
    """Examples as training takes them: small images as they are, photographs as squares.

    Attributes:
      source: where the images are.
      size: side of the squares of photographs.
    """

    source: Source
    size: int

    @property
    def fields(self) -> Fields:
        """`image`, `aspect`, `label`, `index`, as `loader.train_batches` describes them."""
        shape = self.source.fixed_shape or (self.size, self.size, 3)
        return {
            "image": (shape, np.uint8),
            "aspect": ((), np.float32),
            "label": ((), np.int32),
            "index": ((), np.int32),
        }

    def fill(self, positions: np.ndarray, out: Arrays, squares: Squares | None = None) -> Bad:
        """Fills rows.

        Args:
          positions: in the source, [B].
          out: by field [B, …], to be written to.
          squares: kept ones, which are looked at first and added to.

        Returns:
          What was skipped.

        Raises:
          DataError: an image that cannot be decoded, where those are not skipped, or none that can.
        """
        source = self.source
        if isinstance(source, ArraySource) and source.fixed_shape is not None:
            np.take(source.images, positions, axis=0, out=out["image"])
            out["aspect"][:], out["label"][:], out["index"][:] = 1.0, source.labels[positions], positions
            return []
        if squares is not None and squares.give(positions, out):
            return []
        bad: Bad = []
        for row, (position, read) in enumerate(zip(positions.tolist(), source.read_many(positions), strict=True)):
            out["label"][row], out["index"][row] = self._fill_row(position, read, row, out, squares, bad)
        return bad

    def _fill_row(
        self, position: int, read: Any, row: int, out: Arrays, squares: Squares | None, bad: Bad
    ) -> tuple[int, int]:
        """Fills one row with an example, or where it cannot be decoded and may be skipped, with the next that can."""
        source, count = self.source, len(self.source)
        for index in itertools.chain(range(position, count), range(position)):
            try:
                if read is None:
                    (read,) = source.read_many(np.array([index]))
                if isinstance(read, DataError):
                    raise read
                data, label, name = read
                if source.fixed_shape is not None:
                    image, aspect = source.decode(data, name), 1.0
                else:
                    image, aspect = training_square(data, self.size, name=name)
            except DataError as error:
                if source.on_bad_image != "skip":
                    raise
                bad.append((source.example_id(index), str(error)))
                read = None
                continue
            out["image"][row], out["aspect"][row] = image, aspect
            if squares is not None:
                squares.keep(index, image, aspect, label)
            return label, index
        raise DataError(f"{source.name}: no image can be decoded, the first because: {bad[0][1]}")


@dataclasses.dataclass(frozen=True)
class EvaluationExamples:
    """Examples as evaluation takes them.

    Attributes:
      source: where the images are.
      view: how they are seen; None gives images of one small shape as they are.
    """

    source: Source
    view: EvaluationView | None

    @property
    def fields(self) -> Fields:
        """`image`, `label`, `index`, `mask`, as `loader.eval_batches` describes them."""
        kind: tuple[tuple[int, ...], Any] = (self.source.fixed_shape or (), np.uint8)
        if self.view:
            kind = ((self.view.resolution, self.view.resolution, 3), np.float32)
        return {"image": kind, "label": ((), np.int32), "index": ((), np.int32), "mask": ((), np.float32)}

    def fill(self, positions: np.ndarray, out: Arrays, squares: Squares | None = None) -> Bad:
        """Fills rows; a position of -1 is padding. Arguments, result and errors as of `TrainingExamples.fill`."""
        del squares
        source, bad = self.source, Bad()
        real = np.flatnonzero(positions >= 0)
        out["index"][:], out["mask"][:], out["label"][:] = positions, positions >= 0, 0
        out["image"][positions < 0] = 0
        for row, read in zip(real.tolist(), source.read_many(positions[real]), strict=True):
            try:
                if isinstance(read, DataError):
                    raise read
                data, label, name = read
                image = source.decode(data, name)
                out["image"][row] = self.view(image) if self.view else image
                out["label"][row] = label
            except DataError as error:
                if source.on_bad_image != "skip":
                    raise
                bad.append((source.example_id(int(positions[row])), str(error)))
                out["mask"][row], out["image"][row] = 0, 0
        return bad


Examples = TrainingExamples | EvaluationExamples
