"""What every source is: random access to labelled images, all at once in memory or decoded one by one.

`source[i]` is `{"image": uint8 [h, w, 3], "label": int, "id": str}`; `len(source)`; `class_names`; and `fixed_shape`,
(h, w, 3) when all images have one small shape, else None: small images are augmented from their own pixels and
evaluated without a crop, where photographs are decoded and brought to one size on the host first.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from effnet_jax.data.preprocess import decode_image
from effnet_jax.errors import DataError

SMALL_SIDE = 96  # an image no longer than this on either side is "small" (STL-10 is the largest of its kind)

Squares = dict[int, dict[int, tuple[np.ndarray, float, int]]]  # size -> position -> square, aspect, label


@dataclasses.dataclass
class ArraySource:
    """Images that are held in memory as one array.

    Attributes:
      name: what messages call the source.
      images: uint8 [N, h, w, 3].
      labels: int32 [N].
      class_names: one for each class.
      ids: a name for each image; by default the position.
      on_bad_image: `"error"` or `"skip"`; a decoded array has no bad images, so either does nothing.
      bad: what was skipped: dicts of `id` and `error`.
      squares: decoded squares for training that the loader keeps, by size and position.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: Sequence[str] | None = None
    on_bad_image: str = "error"
    bad: list[dict[str, str]] = dataclasses.field(default_factory=list)
    squares: Squares = dataclasses.field(default_factory=dict, repr=False)

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

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        return {"image": self.images[index], "label": int(self.labels[index]), "id": self.example_id(index)}


class Records(Protocol):
    """Encoded images with their labels, by position; can be pickled, since worker processes read them."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int, str]:
        """The bytes of an image file, its label and its name."""
        ...

    def id(self, index: int) -> str:
        """The name alone: a file's path where there is one; never fails."""
        ...


@dataclasses.dataclass
class EncodedSource:
    """Photographs that are decoded when they are asked for.

    Attributes:
      name: what messages call the source.
      records: where the encoded images come from.
      class_names: one for each class.
      labels: int32 [N] where they are known without reading the images, else None.
      on_bad_image: `"error"`: an image that cannot be decoded ends the run; `"skip"`: the loader goes on without it.
      bad: what was skipped: dicts of `id` and `error`.
      squares: decoded squares for training that the loader keeps, by size and position.
    """

    name: str
    records: Records
    class_names: tuple[str, ...]
    labels: np.ndarray | None = None
    on_bad_image: str = "error"
    bad: list[dict[str, str]] = dataclasses.field(default_factory=list)
    squares: Squares = dataclasses.field(default_factory=dict, repr=False)

    fixed_shape = None

    def __len__(self) -> int:
        return len(self.records)

    def example_id(self, index: int) -> str:
        """The name of one image."""
        return self.records.id(index)

    def encoded(self, index: int) -> tuple[bytes, int, str]:
        """The bytes, label and name of one image, not decoded."""
        data, label, name = self.records.read(range(len(self))[index])
        if not 0 <= label < len(self.class_names):
            raise DataError(f"{name} has label {label}, outside 0..{len(self.class_names) - 1}: correct its label")
        return data, label, name

    def __getitem__(self, index: int) -> dict[str, Any]:
        data, label, name = self.encoded(index)
        return {"image": decode_image(data, name=name), "label": label, "id": name}


Source = ArraySource | EncodedSource


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
    if not (np.issubdtype(labels.dtype, np.number) and np.all(labels == np.floor(labels))):
        raise DataError(f"{where}: labels are {labels.dtype}, not class numbers 0..{count - 1}: number the classes")
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{where}: {len(wrong)} label(s) are outside 0..{count - 1}, the first at position {first}: "
            f"{int(labels[first])}. Correct the labels or the class names"
        )
    return labels.astype(np.int32)
