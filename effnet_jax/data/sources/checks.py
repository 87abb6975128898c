"""What is checked before a run: classes that fit the model, splits that fit one another."""

import hashlib
import os
from collections.abc import Iterable, Mapping

import numpy as np

from effnet_jax.data.sources.base import ArraySource, Source
from effnet_jax.data.sources.folder import Files
from effnet_jax.errors import DataError

_FILES_LIMIT = 200_000  # above it, looking at every file's size takes minutes on a network disk
_SHOWN = 10


def check_classes(source: Source, num_classes: int) -> None:
    """Compares the data's classes with the model's.

    Args:
      source: the training source.
      num_classes: of the model's classifier.

    Raises:
      DataError: they differ; with the cure.
    """
    names = source.class_names
    if len(names) != num_classes:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise DataError(
            f"{source.name} has {len(names)} classes ({some}) and the model's classifier {num_classes}: set "
            f"num_classes to {len(names)}, or to 0 to take it from the data"
        )


def check_splits(sources: Mapping[str, Source]) -> list[str]:
    """Compares the splits of a run with one another.

    Args:
      sources: by role: `train`, and `validation` and `test` where there are.

    Returns:
      Warnings for the user: images that occur in two splits, classes that a split for evaluation lacks.

    Raises:
      DataError: the classes differ, or evaluation asks for a class that training never shows.
    """
    train = sources["train"]
    warnings = []
    for role, source in sources.items():
        if role == "train":
            continue
        if source.class_names != train.class_names:
            different = sorted(set(source.class_names) ^ set(train.class_names))
            raise DataError(f"{source.name} and {train.name} have different classes: {', '.join(different[:_SHOWN])}")
        warnings += _compare_classes(train, source)
        pairs = find_duplicates(train, source)
        if pairs:
            listed = "; ".join(f"{first} = {second}" for first, second in pairs[:_SHOWN])
            more = f"; and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
            warnings.append(
                f"{len(pairs)} image(s) of {source.name} are in {train.name} too, so its accuracy flatters: "
                f"{listed}{more}. Remove one of each pair"
            )
    return warnings


def _compare_classes(train: Source, source: Source) -> list[str]:
    if train.labels is None or source.labels is None:
        return []
    names = train.class_names
    trained, evaluated = set(np.unique(train.labels).tolist()), set(np.unique(source.labels).tolist())
    unseen = sorted(evaluated - trained)
    if unseen:
        raise DataError(
            f"{source.name} has classes of which {train.name} has no image: {_named(unseen, names)}. Add images or "
            "choose another slice; if the data is sorted by class, shuffle it"
        )
    missing = sorted(trained - evaluated)
    if missing:
        return [f"{source.name} has no image of {_named(missing, names)}: its accuracy says nothing about them"]
    return []


def _named(labels: list[int], names: tuple[str, ...]) -> str:
    more = f", … ({len(labels)} classes)" if len(labels) > _SHOWN else ""
    return ", ".join(names[label] for label in labels[:_SHOWN]) + more


def find_duplicates(first: Source, second: Source) -> list[tuple[str, str]]:
    """Finds images that are in both sources with the same content.

    Images in memory are compared by their pixels, files by their bytes (only those of equal size are read). Other
    sources, and folders of more than 200,000 files, are not searched.

    Args:
      first: a source.
      second: another.

    Returns:
      Pairs of ids, in the order of `second`.
    """
    if isinstance(first, ArraySource) and isinstance(second, ArraySource):
        if first.images.shape[1:] != second.images.shape[1:]:
            return []
        return _pairs(first, second, _pixel_hashes(first), _pixel_hashes(second))
    if isinstance(first, ArraySource) or isinstance(second, ArraySource):
        return []
    files, others = first.records, second.records
    if not isinstance(files, Files) or not isinstance(others, Files) or max(len(files), len(others)) > _FILES_LIMIT:
        return []
    sizes, other_sizes = _sizes(files), _sizes(others)
    common = set(sizes) & set(other_sizes)
    return _pairs(first, second, _file_hashes(files, sizes, common), _file_hashes(others, other_sizes, common))


def _pairs(
    first: Source, second: Source, hashes: Iterable[tuple[int, bytes]], others: Iterable[tuple[int, bytes]]
) -> list[tuple[str, str]]:
    known = {digest: index for index, digest in hashes}
    return [(first.example_id(known[d]), second.example_id(index)) for index, d in others if d in known]


def _pixel_hashes(source: ArraySource) -> list[tuple[int, bytes]]:
    return [
        (index, hashlib.blake2b(image.tobytes(), digest_size=16).digest()) for index, image in enumerate(source.images)
    ]


def _sizes(files: Files) -> list[int]:
    return [os.path.getsize(files.id(index)) for index in range(len(files))]


def _file_hashes(files: Files, sizes: list[int], common: set[int]) -> list[tuple[int, bytes]]:
    hashes = []
    for index, size in enumerate(sizes):
        if size in common:
            with open(files.id(index), "rb") as file:
                hashes.append((index, hashlib.file_digest(file, "sha256").digest()))
    return hashes
