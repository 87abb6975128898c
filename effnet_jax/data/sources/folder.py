"""Image folders: `root/split/class/image`, or `root/class/image`, which is split by hash.

The order of the images is that of the hash of their path below the root, not the alphabet's, so that a slice as
`train[:90%]` holds all classes; it is the same on every machine.
"""

import dataclasses
import hashlib
import os

import numpy as np

from effnet_jax.data.sources.base import EncodedSource, Read, expand
from effnet_jax.data.sources.splits import parse_split
from effnet_jax.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Of a root without splits: this share of the hashes is train, this validation, the rest test.
HASH_SHARES = (("train", 0.8), ("validation", 0.1), ("test", 0.1))


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files of a folder: paths relative to the root and a label each."""

    root: str
    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def id(self, index: int) -> str:
        """The path of one image."""
        return os.path.join(self.root, self.paths[index])

    def read_many(self, positions: np.ndarray) -> list[Read]:
        """The bytes, labels and paths of some images."""
        return [
            _read(self.id(i), label)
            for i, label in zip(positions.tolist(), self.labels[positions].tolist(), strict=True)
        ]


def _read(path: str, label: int) -> Read:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall(), label, path
    except OSError as error:
        return DataError(f"{path} cannot be read: {error.strerror or error}")


def _visible(folder: str) -> list[os.DirEntry]:
    """Entries of a folder in order, without those that programs leave behind (.DS_Store, .ipynb_checkpoints, …)."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if e.name[0] not in "._"), key=lambda e: e.name)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _images(folder: str) -> list[str]:
    return [e.name for e in _visible(folder) if _is_image(e.name) and e.is_file()]


def _folders(folder: str) -> list[str]:
    return [e.name for e in _visible(folder) if e.is_dir()]


def _hash(path: str) -> bytes:
    return hashlib.sha256(path.replace(os.sep, "/").encode()).digest()


def list_folder(root: str) -> tuple[dict[str, dict[str, list[str]]], bool]:
    """Lists an image folder.

    Args:
      root: a folder `root/split/class/image` or `root/class/image`.

    Returns:
      {split: {class: paths relative to the root}}, and whether the splits are folders (else they are by hash).

    Raises:
      DataError: no such folder, no images, images at the wrong depth, a mixture of both layouts, an empty class folder.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root}: there is no such folder")
    layout = f"expected {root}/split/class/image.jpg or {root}/class/image.jpg"
    tops = _folders(root)
    if _images(root):
        raise DataError(f"{root} holds images directly, without classes: {layout}")
    direct = [top for top in tops if _images(os.path.join(root, top))]
    nested = [top for top in tops if _folders(os.path.join(root, top))]
    if direct and nested:
        raise DataError(f"{root}: {direct[0]} holds images and {nested[0]} holds folders: {layout}")
    if not direct and not nested:
        raise DataError(f"{root} holds no images ({', '.join(SUFFIXES)}): {layout}")
    splits: dict[str, dict[str, list[str]]]
    if nested:
        empty = [top for top in tops if top not in nested]
        if empty:
            raise DataError(f"{os.path.join(root, empty[0])} is an empty split: add class folders or remove it")
        return {split: _classes(root, split) for split in nested}, True
    classes = _classes(root, "")
    splits = {name: {c: [] for c in classes} for name, _ in HASH_SHARES}
    for label, paths in classes.items():
        for path in paths:
            splits[_split_of(path)][label].append(path)
    return splits, False


def _split_of(path: str) -> str:
    position = int.from_bytes(_hash(path)[-8:], "big") / 2**64
    for name, share in HASH_SHARES:
        position -= share
        if position < 0:
            return name
    return HASH_SHARES[-1][0]


def _classes(root: str, split: str) -> dict[str, list[str]]:
    folder = os.path.join(root, split)
    classes = {}
    for name in _folders(folder):
        images = _images(os.path.join(folder, name))
        if not images:
            raise DataError(
                f"{os.path.join(folder, name)} is an empty class folder (no {', '.join(SUFFIXES)} directly in it): "
                "add images or remove the folder"
            )
        classes[name] = [os.path.join(split, name, image) for image in images]
    return classes


def check_classes_in_splits(root: str, splits: dict[str, dict[str, list[str]]]) -> None:
    """Refuses a class that only one split has, or that the training split lacks.

    Args:
      root: what the error calls the folder.
      splits: as `list_folder` gives it.

    Raises:
      DataError: names the classes and the splits.
    """
    if len(splits) < 2:
        return
    for name in sorted(set().union(*splits.values())):
        having = [split for split, classes in splits.items() if name in classes]
        if len(having) == 1 or ("train" in splits and "train" not in having):
            missing = [split for split in splits if split not in having]
            raise DataError(
                f"{root}: class {name!r} is in {' and '.join(having)} but not in {', '.join(missing)} "
                f"({os.path.join(root, missing[0], name)} does not exist): add it there, remove it, or correct the "
                "spelling of the folder"
            )


def open_folder(root: str, expression: str, *, on_bad_image: str = "error") -> EncodedSource:
    """Opens a split expression of an image folder.

    Args:
      root: the folder.
      expression: see `splits.parse_split`.
      on_bad_image: `"error"` or `"skip"`.

    Returns:
      A source whose class names are the folders' names in alphabetical order, over all splits.

    Raises:
      DataError: a folder that is not laid out as expected, or an unknown split.
    """
    root = expand(root)
    splits, in_folders = list_folder(root)
    if in_folders:
        check_classes_in_splits(root, splits)
    class_names = tuple(sorted(set().union(*splits.values())))
    numbers = {name: number for number, name in enumerate(class_names)}
    examples = {
        split: sorted(((path, numbers[name]) for name, paths in classes.items() for path in paths), key=_order)
        for split, classes in splits.items()
    }
    parts = parse_split(expression, {split: len(items) for split, items in examples.items()}, root)
    chosen = [example for split, start, stop in parts for example in examples[split][start:stop]]
    labels = np.array([label for _, label in chosen], np.int32)
    files = Files(root, tuple(path for path, _ in chosen), labels)
    return EncodedSource(f"{root} {expression}", files, class_names, labels, on_bad_image=on_bad_image)


def _order(example: tuple[str, int]) -> bytes:
    return _hash(example[0])
