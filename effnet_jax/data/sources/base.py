"""What every source is: random access to labelled images, all at once in memory or decoded one by one.

`source[i]` is `{"image": uint8 [h, w, 3], "label": int, "id": str}`; `len(source)`; `class_names`; and `fixed_shape`,
(h, w, 3) when all images have one small shape, else None: small images are augmented from their own pixels and
evaluated without a crop, where photographs are decoded and brought to one size on the host first.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from effnet_jax.data.decode import decode_image
from effnet_jax.errors import DataError

SMALL_SIDE = 96  # an image no longer than this on either side is "small" (STL-10 is the largest of its kind)

Read = tuple[Any, int, str] | DataError  # what an image is made of, its label and its name; or why there is none


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images that are held in memory as one array.

    Attributes:
      name: what messages call the source.
      images: uint8 [N, h, w, 3].
      labels: int32 [N].
      class_names: one for each class.
      ids: a name for each image; by default the position.
      on_bad_image: `"error"` or `"skip"`; a decoded array has no bad images, so either does nothing.
      left_out: images that could not be decoded when it was opened: dicts of `id` and `error`.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: Sequence[str] | None = None
    on_bad_image: str = "error"
    left_out: tuple[dict[str, str], ...] = ()

    @property
    def fixed_shape(self) -> tuple[int, int, int] | None:
        """The shape of all images where they are small, else None."""
        height, width = self.images.shape[1:3]
        return (height, width, 3) if max(height, width) <= SMALL_SIDE else None

    def __len__(self) -> int:
        return len(self.images)

    def example_id(self, index: int) -> str:
        """The name of one image."""
        return str(self.ids[index]) if self.ids is not None else f"{self.name}/{index}"

    def read_many(self, positions: np.ndarray) -> list[Read]:
        """Images, labels and names at some positions."""
        return [(self.images[i], int(self.labels[i]), self.example_id(i)) for i in positions.tolist()]

    def decode(self, data: Any, name: str) -> np.ndarray:
        """The image itself."""
        del name
        return data

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        return {"image": self.images[index], "label": int(self.labels[index]), "id": self.example_id(index)}


class Records(Protocol):
    """Encoded images with their labels, by position; can be pickled, since worker processes read them."""

    def __len__(self) -> int: ...

    def read_many(self, positions: np.ndarray) -> list[Read]:
        """The bytes of image files, their labels and names, or what reading one of them came to."""
        ...

    def id(self, index: int) -> str:
        """The name alone: a file's path where there is one; never fails."""
        ...


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """Images that are decoded when they are asked for.

    Attributes:
      name: what messages call the source.
      records: where the encoded images come from.
      class_names: one for each class.
      labels: int32 [N] where they are known without reading the images, else None.
      on_bad_image: `"error"`: an image that cannot be decoded ends the run; `"skip"`: the loader goes on without it.
      fixed_shape: (h, w, 3) where all images are of one small shape, else None: photographs.
    """

    name: str
    records: Records
    class_names: tuple[str, ...]
    labels: np.ndarray | None = None
    on_bad_image: str = "error"
    fixed_shape: tuple[int, int, int] | None = None

    left_out = ()

    def __len__(self) -> int:
        return len(self.records)

    def example_id(self, index: int) -> str:
        """The name of one image."""
        return self.records.id(index)

    def read_many(self, positions: np.ndarray) -> list[Read]:
        """The bytes, labels and names at some positions, not decoded."""
        return [self._checked(read) for read in self.records.read_many(positions)]

    def _checked(self, read: Read) -> Read:
        if isinstance(read, DataError) or 0 <= read[1] < len(self.class_names):
            return read
        _, label, name = read
        return DataError(f"{name} has label {label}, outside 0..{len(self.class_names) - 1}: correct its label")

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Decodes one image: uint8 [h, w, 3].

        Raises:
          DataError: it cannot be; or it is not of the shape that all have.
        """
        image = decode_image(data, name=name)
        if self.fixed_shape is not None and image.shape != self.fixed_shape:
            raise DataError(f"{name} is {image.shape}, and the set's images are {self.fixed_shape}: give all one shape")
        return image

    def encoded(self, index: int) -> tuple[bytes, int, str]:
        """The bytes, label and name of one image, not decoded."""
        (read,) = self.read_many(np.array([range(len(self))[index]]))
        if isinstance(read, DataError):
            raise read
        return read

    def __getitem__(self, index: int) -> dict[str, Any]:
        data, label, name = self.encoded(index)
        return {"image": self.decode(data, name), "label": label, "id": name}


Source = ArraySource | EncodedSource


def typical_side(source: Source) -> float:
    """The shorter side of a typical photograph in pixels, the median of some; 0 for small images.

    Args:
      source: of which the sizes of at most 64 images are read.
    """
    if source.fixed_shape is not None:
        return 0.0
    if isinstance(source, ArraySource):
        return float(min(source.images.shape[1:3]))
    sides = []
    for read in source.read_many(np.unique(np.linspace(0, len(source) - 1, 64).astype(int))):
        if isinstance(read, DataError):  # whoever decodes it is told
            continue
        with contextlib.suppress(Exception), Image.open(io.BytesIO(read[0])) as image:
            sides.append(min(image.size))
    return float(np.median(sides)) if sides else 0.0


def fingerprint(source: Source) -> str:
    """Returns a hash of all images and labels of a source, in their order."""
    digest = hashlib.sha256()
    if isinstance(source, ArraySource):
        digest.update(f"{source.images.shape}".encode())
        digest.update(np.ascontiguousarray(source.images).data)
        digest.update(np.ascontiguousarray(source.labels).data)
        return digest.hexdigest()
    for index in range(len(source)):
        try:
            data, label, _ = source.encoded(index)
        except DataError as error:  # a bad image is what it is, and may be skipped
            data, label = str(error).encode(), -1
        digest.update(f"{label} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


def expand(path: str | os.PathLike) -> str:
    """The path with `~` replaced."""
    return os.path.expanduser(os.fspath(path))


def check_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    """Checks integer class labels.

    Args:
      labels: [N] or [N, 1], of an integer type or whole numbers.
      count: how many classes there are.
      where: what the error calls them.

    Returns:
      int32 [N].

    Raises:
      DataError: another shape, fractions, or a label outside 0..count - 1.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{where}: labels have shape {list(labels.shape)}, expected [N]: one class number an image "
            "(of one-hot rows take labels.argmax(axis=1))"
        )
    numbers = np.issubdtype(labels.dtype, np.integer) or np.issubdtype(labels.dtype, np.floating)
    if not numbers:
        raise DataError(f"{where}: labels are {labels.dtype}, not class numbers 0..{count - 1}: number the classes")
    if unknown := np.count_nonzero(~np.isfinite(labels)):
        first = int(np.flatnonzero(~np.isfinite(labels))[0])
        raise DataError(
            f"{where}: {unknown} label(s) are no numbers, the first at position {first}: leave these images out"
        )
    if not np.all(labels == np.floor(labels)):
        raise DataError(f"{where}: labels have fractions, and are not class numbers 0..{count - 1}: number the classes")
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{where}: {len(wrong)} label(s) are outside 0..{count - 1}, the first at position {first}: "
            f"{int(labels[first])}. Correct the labels or the class names"
        )
    return labels.astype(np.int32)
