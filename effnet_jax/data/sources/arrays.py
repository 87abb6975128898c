"""Arrays in memory, and `.npz` files of them."""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from effnet_jax.archives import ArchiveError, Npz
from effnet_jax.data.sources.base import ArraySource, check_labels, expand
from effnet_jax.data.sources.dataset import Dataset, class_order
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
_SPARSE = 1000  # classes; fewer are made even where most have no image
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
    if not class_names:
        labels, class_names = named_classes(labels, name)
    names = tuple(str(n) for n in class_names)
    return ArraySource(name, images, check_labels(labels, len(names), name), names)


def named_classes(labels: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Names the classes of labels: texts are names themselves, numbers have theirs up to the largest label.

    Raises:
      DataError: labels that leave most numbers up to the largest unused.
    """
    if labels.dtype.kind in "US":
        texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in labels.tolist()]
        names = class_order(set(texts))
        numbers = {text: number for number, text in enumerate(names)}
        return np.array([numbers[text] for text in texts], np.int32), names
    count = _count(labels)
    used = len(np.unique(labels))
    if count > _SPARSE and count >= 10 * used:
        raise DataError(
            f"{name}: there are {used:,} different labels up to {count - 1:,}, which would make {count:,} classes, "
            "most without an image: number them anew with numpy.unique(labels, return_inverse=True)[1], the same for "
            "all splits, or give class_names"
        )
    return labels, tuple(map(str, range(count)))


def _wrong_type(images: np.ndarray, name: str) -> str:
    message = f"{name}: images are {images.dtype}, expected uint8 from 0 to 255"
    if images.size and np.issubdtype(images.dtype, np.number):
        low, high = images.min(), images.max()
        message += f"; these go from {low:g} to {high:g}"
        if -1 <= low < 0 and high <= 1:
            return message + ": add 1, multiply by 127.5, round and convert with .astype('uint8')"
        if low >= 0 and high <= 1:
            return message + ": multiply by 255, round and convert with .astype('uint8')"
        if low >= 0 and high <= 255:
            return message + ": round and convert with .astype('uint8')"
    return message + ": scale them and convert with .astype('uint8')"


def _count(labels: np.ndarray) -> int:
    known = labels[np.isfinite(labels)] if labels.dtype.kind in "iuf" else labels[:0]  # others are told with a reason
    return int(known.max()) + 1 if known.size else 0


def open_npz(path: str) -> Dataset:
    """Opens an `.npz` file.

    The arrays are called `x_train`, `y_train`, `x_test`, … as Keras does it, or `train_images`, `train_labels`, …, or
    without a split `image` and `label` (`images`/`labels`, `x`/`y`, `data`/`target`), which is the split `train`. A
    `class_names` array of strings names the classes. The order is that of the file: shuffle a file that is sorted by
    class before slicing it.

    Args:
      path: of the file.

    Returns:
      The data set; a split's images are read when it is opened, once.

    Raises:
      DataError: a damaged file, unknown or pickled arrays, or what `from_arrays` refuses.
    """
    path = expand(path)
    with _opened(path) as file:
        keys = _find_keys(file.names, path)
        labels = {split: file.read(label) for split, (_, label) in keys.items()}
        given = _texts(file.read("class_names")) if "class_names" in file.names else []
    names = tuple(given)
    if not names:  # of all splits together
        together, names = named_classes(np.concatenate([np.ravel(label) for label in labels.values()]), path)
        stops = np.cumsum([np.size(label) for label in labels.values()])[:-1]
        labels = dict(zip(labels, np.split(together, stops), strict=True))
    sizes = {split: len(label) for split, label in labels.items()}

    @functools.cache
    def source(split: str) -> ArraySource:
        with _opened(path) as file:
            images = file.read(keys[split][0])
        return from_arrays(images, labels[split], names, name=f"{path} {split}")

    def opened(expression: str) -> ArraySource:
        parts = parse_split(expression, sizes, path)
        return join([(source(split), start, stop) for split, start, stop in parts], f"{path} {expression}")

    return Dataset(path, names, sizes, opened)


def _texts(names: np.ndarray) -> list[str]:
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names.tolist()]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Npz]:
    """Opens an `.npz`; what goes wrong inside is the file's fault."""
    try:
        with Npz(path) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (ArchiveError, OSError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): save it with numpy.savez, arrays of numbers or strings only"
        ) from None


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
