"""What can be classified: paths, bytes of image files, open files, arrays. And what a model sees of them.

Worker processes import this: Pillow, simplejpeg and NumPy only.
"""

import dataclasses
import glob
import os
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np

from effnet_jax.data.decode import decode_image
from effnet_jax.data.examples import Arrays, Fields
from effnet_jax.data.sources.listing import Unread, displayed, walk
from effnet_jax.data.view import EvaluationView
from effnet_jax.errors import DataError

ImageLike = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | np.ndarray
Drawn = tuple[str, Any]  # what messages call an image, and its path, bytes or array; or the DataError that it came to
Row = tuple[int, Drawn | None]  # a row of a batch, and what fills it; None: padding


def is_one(images: Any) -> bool:
    """Whether what was given for many images is one."""
    return (
        isinstance(images, str | os.PathLike | bytes | bytearray | memoryview)
        or hasattr(images, "read")
        or (hasattr(images, "ndim") and images.ndim in (0, 2, 3))  # with one axis it holds paths
    )


def draw(image: ImageLike, number: int) -> Drawn:
    """Takes an image out of the caller's hands: an open file is read to its end, an array is looked at and copied.

    Paths are not opened yet: that is the decoders' work.

    Args:
      image: a path, the bytes of an image file, an open binary file, or an array of [h, w, 3] with levels 0..255.
      number: how many came before it, for messages.
    """
    name = f"image {number}"
    try:
        if isinstance(image, str | os.PathLike):
            path = os.fsdecode(image)
            return displayed(path), path
        if isinstance(image, bytes | bytearray | memoryview):
            return name, bytes(image)
        if hasattr(image, "read"):
            name = str(getattr(image, "name", name))
            data = image.read()
            if not isinstance(data, bytes):
                raise DataError(f"{name} is open as text: open it with mode 'rb'")
            return name, data
        # Copied, since the caller may fill the same array for each image, as cameras do.
        return name, check_array(np.asarray(image), name).copy()
    except (OSError, ValueError) as error:  # a file that is closed, a path that no disk can have
        return name, DataError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}")
    except DataError as error:
        return name, error


def check_array(image: np.ndarray, name: str = "an image") -> np.ndarray:
    """Returns an array's levels as uint8 [h, w, 3]; fractions are rounded, as they are in a file.

    Args:
      image: of any numeric type.
      name: what messages call it.

    Raises:
      DataError: another shape, or values that are no levels 0..255.
    """
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        cures = {
            2: "repeat a grey image: np.stack([image] * 3, axis=-1)",
            3: "leave opacity out: image[..., :3]"
            if image.shape[-1:] == (4,)
            else "put the channels last: image.transpose(1, 2, 0)"
            if image.shape[:1] == (3,)
            else "",
        }
        cure = cures.get(image.ndim, "")
        raise DataError(
            f"{name} of shape {image.shape} cannot be classified: give [height, width, 3] in RGB"
            + (f" ({cure})" if cure else "")
        )
    if image.dtype == np.uint8:
        return image
    if image.dtype == bool or not (np.issubdtype(image.dtype, np.integer) or np.issubdtype(image.dtype, np.floating)):
        raise DataError(f"{name} is of type {image.dtype}: give levels 0..255 as uint8 or float")
    low, high = float(image.min()), float(image.max())
    span = f"{name} has values from {low:g} to {high:g}, and levels go from 0 to 255"
    if not np.isfinite(low + high):
        raise DataError(f"{name} has values that are no finite numbers: leave it out, or mend it with np.nan_to_num")
    if np.issubdtype(image.dtype, np.floating) and low >= -1 and 0 < high <= 1:
        raise DataError(f"{span}: " + ("multiply by 255" if low >= 0 else "give (image + 1) * 127.5"))
    if low < 0 or high > 255:
        cure = "image // 257" if image.dtype == np.uint16 else "np.clip(image, 0, 255) where it goes a little beyond"
        raise DataError(f"{span}: give {cure}")
    return np.rint(image).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class ViewedImages:
    """Fills rows of batches with what a model sees of images.

    Attributes:
      view: how they are seen.
    """

    view: EvaluationView

    @property
    def fields(self) -> Fields:
        """`image`: float32 [resolution, resolution, 3]."""
        return {"image": ((self.view.resolution, self.view.resolution, 3), np.float32)}

    def fill(self, rows: Sequence[Row], out: Arrays, squares: None = None) -> list[tuple[int, str]]:
        """Fills rows.

        Args:
          rows: of the batch, with what belongs there.
          out: `image` [B, …], to be written to.
          squares: none are kept.

        Returns:
          The rows whose image cannot be decoded, and why; they are zero, as padding is.
        """
        bad = []
        for image, (row, drawn) in zip(out["image"], rows, strict=True):
            try:
                if drawn is None:
                    image[:] = 0
                    continue
                name, data = drawn
                if isinstance(data, DataError):
                    raise data
                image[:] = self.view(data if isinstance(data, np.ndarray) else decode_image(data, name=name))
            except DataError as error:
                image[:] = 0
                bad.append((row, str(error)))
        return bad


def find_images(names: Iterable[str], unread: Unread | None = None) -> list[str]:
    """Returns the image files that names stand for, in order: files, folders (with all below), glob patterns.

    Args:
      names: as the user gave them; `~` is expanded.
      unread: counts the files in folders that are no images.

    Raises:
      DataError: a name stands for nothing.
    """
    found: list[str] = []
    for name in map(os.path.expanduser, names):
        if os.path.isdir(name):
            here = Unread() if unread is None else unread
            inside = sorted(
                os.path.join(name, folder, file)
                for folder, names_here in walk(name, "", here, lambda folder, status: None)
                for file in names_here
            )
            if not inside:
                others = f" ({here.words()})" if here.words() else ""
                raise DataError(f"the folder {displayed(name)} holds no images{others}: give another one")
            found.extend(inside)
        elif os.path.exists(name):
            found.append(name)
        else:
            matches = sorted(match for match in glob.glob(name, recursive=True) if os.path.isfile(match))
            if not matches:
                why = "the pattern matches no file" if glob.has_magic(name) else _why_not(name)
                raise DataError(
                    f"{displayed(name)}: {why}; give image files, folders or patterns such as 'photos/*.jpg'"
                )
            found.extend(matches)
    return found


def _why_not(name: str) -> str:
    """Why there is no file of a name: there is none, or it is where this user may not look."""
    try:
        os.stat(name)
    except (FileNotFoundError, ValueError):
        pass
    except OSError as error:
        return f"it cannot be reached ({error.strerror})"
    return "the file does not exist"
