"""The images of a folder as a table: a few arrays, of a million files too, in memory or in a file that all share.

The order within a split is that of the hash of an image's path below the root, not the alphabet's, so that a slice as
`train[:90%]` holds all classes; it is the same on every machine.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from effnet_jax.data.sources.base import Read
from effnet_jax.data.sources.listing import displayed, read_file

_COLUMNS = ("names", "ends", "folders", "classes")
_VERSION = 2
_WORTH_KEEPING = 50_000  # images; fewer are listed in no time
_RACY_NS = 2 * 10**9  # a folder that was changed so shortly before it was listed may have been changed after, too


@dataclasses.dataclass(frozen=True)
class Table:
    """Image files below a root, sorted by split and in their order.

    Attributes:
      root: the folder.
      paths: of the folders that hold images, relative to it.
      class_names: in the order of `classes`.
      splits: {name: (first row, row after the last)}.
      names: the files' names one after the other, uint8.
      ends: where each of them ends there, int64 [N].
      folders: which of `paths` each lies in, int32 [N].
      classes: of each, int32 [N].
      place: the folder that the arrays are kept in, "" where they are in memory alone.
    """

    root: str
    paths: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[int, int]]
    names: np.ndarray
    ends: np.ndarray
    folders: np.ndarray
    classes: np.ndarray
    place: str = ""

    def __len__(self) -> int:
        return len(self.ends)

    def paths_of(self, rows: np.ndarray) -> list[str]:
        """Of some files, with the root."""
        starts, ends = np.where(rows > 0, self.ends[rows - 1], 0).tolist(), self.ends[rows].tolist()
        folders = [os.path.join(self.root, self.paths[folder], "") for folder in self.folders[rows].tolist()]
        names = [os.fsdecode(self.names[start:end].tobytes()) for start, end in zip(starts, ends, strict=True)]
        return [folder + name for folder, name in zip(folders, names, strict=True)]

    def __reduce__(self) -> Any:
        """A table that is kept in a file is pickled as its place: workers look at the same memory.

        Where it is gone, as caches go, or has made room for a newer one, the arrays are pickled, which are still there.
        """
        if self.place and os.path.exists(self.place):
            return load_table, (self.place, self.root)
        return Table, tuple(getattr(self, field.name) for field in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True)
class Files:
    """Rows of a table as records.

    Attributes:
      table: of all files.
      rows: which of them.
      numbers: the label of each of the table's classes.
    """

    table: Table
    rows: range | np.ndarray
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Of each image, int32 [N]."""
        rows = self.rows
        classes = self.table.classes[rows.start : rows.stop] if isinstance(rows, range) else self.table.classes[rows]
        return np.asarray(self.numbers, np.int32)[classes]

    def __getstate__(self) -> Any:
        return {"table": self.table, "rows": self.rows, "numbers": self.numbers}

    def paths(self, positions: np.ndarray) -> list[str]:
        """Where some images are."""
        rows = positions + self.rows.start if isinstance(self.rows, range) else self.rows[positions]
        return self.table.paths_of(rows)

    def id(self, index: int) -> str:
        """The path of one image, as text."""
        return displayed(self.paths(np.array([index]))[0])

    def read_many(self, positions: np.ndarray) -> list[Read]:
        """The bytes, labels and paths of some images."""
        labels = self.labels[positions].tolist()
        return [read_file(path, label) for path, label in zip(self.paths(positions), labels, strict=True)]


class TableBuilder:
    """Collects the images of a folder."""

    def __init__(self, root: str, shares: Sequence[tuple[str, float]] = ()) -> None:
        """Begins with none.

        Args:
          root: the folder.
          shares: of splits that are told by hash; none where `add` says the split.
        """
        self._root, self._shares = root, shares
        self._names: list[bytes] = []
        self._paths: list[str] = []
        self._folders: list[int] = []
        self._classes: list[int] = []
        self._splits: list[int] = []
        self._digests: list[bytes] = []
        self._class_numbers: dict[str, int] = {}
        self._split_numbers: dict[str, int] = {name: number for number, (name, _) in enumerate(shares)}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, folder: str, names: Sequence[str], label: str, split: str = "") -> None:
        """Adds files of one class.

        Args:
          folder: that they lie in, relative to the root.
          names: of the files.
          label: name of the class.
          split: of them.
        """
        begun = hashlib.sha256(_hashed(os.path.join(folder, "")))
        for name in names:
            digest = begun.copy()
            digest.update(_hashed(name))
            self._digests.append(digest.digest())
        self._names += map(os.fsencode, names)
        self._folders += [len(self._paths)] * len(names)
        self._paths.append(folder)
        number = self._class_numbers.setdefault(label, len(self._class_numbers))
        self._classes += [number] * len(names)
        if not self._shares:
            self._splits += [self._split_numbers.setdefault(split, len(self._split_numbers))] * len(names)

    def build(self) -> Table:
        """Sorts what was added."""
        # Big-endian, so that they sort as the digests do; 16 of the 32 bytes tell all apart.
        words = np.frombuffer(b"".join(self._digests), ">u8").reshape(-1, 4)
        classes = np.array(self._classes, np.int32)
        splits = self._by_hash(words[:, 3], classes) if self._shares else np.array(self._splits, np.int32)
        order = np.lexsort((words[:, 1], words[:, 0], splits))
        counts = np.bincount(splits, minlength=len(self._split_numbers))
        stops = np.cumsum(counts)
        names = [self._names[row] for row in order.tolist()]
        return Table(
            root=self._root,
            paths=tuple(self._paths),
            class_names=tuple(self._class_numbers),
            splits={
                name: (int(stops[number] - counts[number]), int(stops[number]))
                for name, number in self._split_numbers.items()
            },
            names=np.frombuffer(b"".join(names), np.uint8),
            ends=np.cumsum([len(name) for name in names], dtype=np.int64),
            folders=np.array(self._folders, np.int32)[order],
            classes=classes[order],
        )

    def _by_hash(self, words: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The split of each image by its own hash, so that no image changes it when others come.

        Of a class that would have none in the first split, the image with the lowest hash goes there.
        """
        positions = words.astype(np.float64) / 2.0**64
        splits = np.full(len(positions), len(self._shares) - 1, np.int32)
        lower = 0.0
        for number, (_, share) in enumerate(self._shares):
            splits[(positions >= lower) & (positions < lower + share)] = number
            lower += share
        first = np.lexsort((positions, classes))
        starts = np.searchsorted(classes[first], np.arange(len(self._class_numbers)))
        splits[first[starts]] = 0
        return splits


def _hashed(path: str) -> bytes:
    """A path in the form that is hashed: the same whatever Unicode form the disk keeps names in."""
    return unicodedata.normalize("NFC", path).replace(os.sep, "/").encode("utf-8", "surrogateescape")


# ---- kept in a file


def kept_table(place: str, root: str) -> tuple[Table, dict[str, Any]] | None:
    """Returns a table that was kept, and what is kept about it, where its folders are as they were.

    Args:
      place: the folder that it was kept below.
      root: of the images.
    """
    try:
        place = os.path.join(place, max(name for name in os.listdir(place) if name.isdigit()))
        with open(os.path.join(place, "about.json"), encoding="utf-8", errors="surrogateescape") as file:
            about = json.load(file)
        if about["version"] != _VERSION:
            return None
        for folder, changed in about["changed"].items():
            now = os.stat(os.path.join(root, folder)).st_mtime_ns
            if now != changed or now > about["listed"] - _RACY_NS:
                return None
        return load_table(place, root), about
    except (OSError, ValueError, KeyError, TypeError):
        return None  # as good as none


def load_table(place: str, root: str) -> Table:
    """Opens a table that was kept; its arrays stay in the file."""
    with open(os.path.join(place, "about.json"), encoding="utf-8", errors="surrogateescape") as file:
        about = json.load(file)
    arrays = {name: np.load(os.path.join(place, f"{name}.npy"), mmap_mode="r") for name in _COLUMNS}
    splits = {name: (start, stop) for name, (start, stop) in about["splits"].items()}
    return Table(root, tuple(about["paths"]), tuple(about["class_names"]), splits, place=place, **arrays)


def keep_table(place: str, table: Table, changed: Mapping[str, int], listed: int, about: Mapping[str, Any]) -> Table:
    """Keeps a table of many images for the next time.

    Args:
      place: a folder of its own, to keep it below. A newer table never takes another's place, since workers of a run
        may be about to open that.
      table: what to keep.
      changed: when each folder that was listed was changed, in nanoseconds.
      listed: when listing began, likewise.
      about: what else to keep.

    Returns:
      The table, in the file where that could be written.
    """
    if len(table) < _WORTH_KEEPING:
        return table
    partial = os.path.join(place, f".{os.getpid()}-{time.monotonic_ns()}")
    try:
        os.makedirs(partial)
        for name in _COLUMNS:
            np.save(os.path.join(partial, f"{name}.npy"), getattr(table, name))
        known = {
            "version": _VERSION,
            "listed": listed,
            "changed": dict(changed),
            "paths": table.paths,
            "class_names": table.class_names,
            "splits": table.splits,
            **about,
        }
        with open(os.path.join(partial, "about.json"), "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(known, file, ensure_ascii=False)
        final = os.path.join(place, f"{listed:020d}")
        os.rename(partial, final)
        for name in os.listdir(place):
            if name.isdigit() and name < f"{listed:020d}":
                shutil.rmtree(os.path.join(place, name), ignore_errors=True)
        return load_table(final, table.root)
    except OSError:  # another process was first, or there is no room: it is listed again
        shutil.rmtree(partial, ignore_errors=True)
        return table
