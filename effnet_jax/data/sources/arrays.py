"""Arrays in memory, and `.npz` files of them."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from effnet_jax.data.sources.base import ArraySource, check_labels, expand
from effnet_jax.data.sources.splits import parse_split
from effnet_jax.errors import DataError

# How files name images and labels. With a split in the name, `{}`: Keras, MedMNIST.
_SPLIT_KEYS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("images_{}", "labels_{}"))
# Without: one split, called `train`. tensorflow-datasets, scikit-learn and common usage.
_PLAIN_KEYS = (
    ("image", "label"),
    ("images", "labels"),
    ("x", "y"),
    ("X", "y"),
    ("data", "target"),
    ("images", "target"),
)
_SPLITS = ("train", "validation", "val", "valid", "test")


def from_arrays(
    images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] = (), *, name: str = "arrays"
) -> ArraySource:
    """Makes a source of arrays.

    Args:
      images: uint8 [N, h, w, 3], or grey [N, h, w] or [N, h, w, 1].
      labels: whole numbers [N] or [N, 1], from 0.
      class_names: one for each class; by default the numbers up to the largest label.
      name: what messages call it.

    Returns:
      The source; it does not copy uint8 RGB images.

    Raises:
      DataError: no images, another shape or type, as many labels as images are not there, or a label out of range.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(
            f"{name}: images have shape {list(images.shape)}, expected [N, h, w, 3], [N, h, w, 1] or [N, h, w]"
        )
    if images.dtype != np.uint8:
        raise DataError(_wrong_type(images, name))
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{name}: {len(images)} images and {len(labels)} labels: give one label for each image")
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    count = len(class_names) or _count(labels)
    names = tuple(str(n) for n in class_names) or tuple(str(n) for n in range(count))
    return ArraySource(name, images, check_labels(labels, count, name), names)


def _wrong_type(images: np.ndarray, name: str) -> str:
    message = f"{name}: images are {images.dtype}, expected uint8 from 0 to 255"
    if images.size and np.issubdtype(images.dtype, np.number):
        low, high = images.min(), images.max()
        message += f"; these go from {low:g} to {high:g}"
        if high <= 1:
            return message + ": multiply by 255, round and convert with .astype('uint8')"
    return message + ": scale them and convert with .astype('uint8')"


def _count(labels: np.ndarray) -> int:
    return int(labels.max()) + 1 if labels.size and np.issubdtype(labels.dtype, np.number) else 0


def open_npz(path: str, expression: str) -> ArraySource:
    """Opens a split expression of an `.npz` file.

    The arrays are called `x_train`, `y_train`, `x_test`, … as Keras does it, or `train_images`, `train_labels`, …, or
    without a split `image` and `label` (`images`/`labels`, `x`/`y`, `data`/`target`), which is the split `train`. A
    `class_names` array of strings names the classes. The order is that of the file: shuffle a file that is sorted by
    class before slicing it.

    Args:
      path: of the file.
      expression: see `splits.parse_split`.

    Returns:
      The source.

    Raises:
      DataError: a damaged file, unknown or pickled arrays, or what `from_arrays` refuses.
    """
    path = expand(path)
    with _opened(path) as file:
        keys = _find_keys(file.files, path)
        labels = {split: file[label] for split, (_, label) in keys.items()}
        names = [str(name) for name in file["class_names"]] if "class_names" in file.files else []
        parts = parse_split(expression, {split: len(label) for split, label in labels.items()}, path)
        images = {split: file[keys[split][0]] for split in {part[0] for part in parts}}
    count = max(_count(label) for label in labels.values())
    names = names or [str(number) for number in range(count)]
    sources = {split: from_arrays(images[split], labels[split], names, name=f"{path} {split}") for split in images}
    return join([(sources[split], start, stop) for split, start, stop in parts], f"{path} {expression}")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens an `.npz`; what goes wrong inside is the file's fault."""
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}): save it with numpy.savez, arrays of numbers or strings only"
        ) from None


def npz_sizes(path: str) -> dict[str, int]:
    """The splits of an `.npz` file, with their numbers of examples.

    Args:
      path: of the file.

    Returns:
      {split: examples}.

    Raises:
      DataError: it cannot be read.
    """
    with _opened(path) as file:
        return {split: len(file[label]) for split, (_, label) in _find_keys(file.files, path).items()}


def join(parts: Sequence[tuple[ArraySource, int, int]], name: str) -> ArraySource:
    """Slices and concatenates sources of one data set; a single slice is a view.

    Args:
      parts: (source, start, stop) of each.
      name: what messages call the result.

    Returns:
      The source.

    Raises:
      DataError: the parts' images differ in shape.
    """
    images = [source.images[start:stop] for source, start, stop in parts]
    labels = [source.labels[start:stop] for source, start, stop in parts]
    ids = [source.example_id(index) for source, start, stop in parts for index in range(start, stop)]
    shapes = sorted({part.shape[1:] for part in images})
    if len(shapes) > 1:
        raise DataError(f"{name}: the splits' images have different shapes {shapes}: use one split, or resize them")
    if len(parts) == 1:
        return ArraySource(name, images[0], labels[0], parts[0][0].class_names, ids)
    return ArraySource(name, np.concatenate(images), np.concatenate(labels), parts[0][0].class_names, ids)


def _find_keys(files: Sequence[str], path: str) -> dict[str, tuple[str, str]]:
    for image, label in _SPLIT_KEYS:
        found = {
            split: (image.format(split), label.format(split))
            for split in _SPLITS
            if image.format(split) in files and label.format(split) in files
        }
        if found:
            return found
    for image, label in _PLAIN_KEYS:
        if image in files and label in files:
            return {"train": (image, label)}
    raise DataError(
        f"{path} holds the arrays {', '.join(files) or '(none)'}: name them x_train, y_train, x_test, y_test, "
        "or image and label"
    )
