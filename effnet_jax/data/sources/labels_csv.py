"""Labels in a table beside the images, as Kaggle ships them: `labels.csv`, or `train.csv` and its like."""

import collections
import csv
import os
from collections.abc import Iterator, Mapping, Sequence

from effnet_jax.data.sources.listing import Unread, Visit, displayed, normal, walk
from effnet_jax.errors import DataError

_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_name", "image_id", "id")
LABELS = ("label", "labels", "class", "class_name", "target", "category", "breed", "species", "y")
_SPLITS = ("split", "subset", "fold_name")
_FILES = {
    "labels.csv": "",
    "train.csv": "train",
    "validation.csv": "validation",
    "val.csv": "validation",
    "valid.csv": "validation",
}
_SHOWN = 3


def find_labels(files: Sequence[os.DirEntry]) -> list[tuple[str, str]]:
    """The tables among a folder's files: (name, split); a table for all has no split."""
    known = {entry.name.lower(): entry.name for entry in files if entry.name.lower() in _FILES}
    if "labels.csv" in known:
        return [(known["labels.csv"], "")]
    found = [(name, _FILES[lower]) for lower, name in known.items()]
    # One table alone is split by hash; with another one beside it, each is a split.
    return [(name, "") for name, _ in found] if len(found) == 1 else found


def labelled_files(
    root: str, name: str, split: str, *, skip: bool, unread: Unread, visit: Visit
) -> Iterator[tuple[str, list[str], str, str]]:
    """Reads a table.

    Args:
      root: the folder.
      name: of the table in it.
      split: of all its images; "": what its column `split` says, if it has one.
      skip: whether images that are not there are passed over.
      unread: counts them, and what else is not read.
      visit: is told each folder, and the table, with its status.

    Yields:
      A folder relative to the root, the names of images in it, their label and split.

    Raises:
      DataError: columns that are not understood, a path twice, no label, or an image that is not there.
    """
    where = displayed(os.path.join(root, name))
    unread.ignored |= {".csv"}
    places = {os.path.join(folder, file) for folder, files in walk(root, "", unread, visit) for file in files}
    sought = _Sought(places)
    rows: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    seen: dict[str, int] = {}
    missing = []
    for line, row in _rows(root, name, visit):
        asked, label = row[0].strip(), normal(row[1].strip())
        if not label or label.lower() == "nan":
            raise DataError(f"{where}, line {line}: {asked!r} has no label: give it one, or remove the line")
        found = sought.find(asked)
        if found is None:
            missing.append(f"{asked!r} (line {line})")
            continue
        if found in seen:
            raise DataError(f"{where} names {displayed(found)} twice, in lines {seen[found]} and {line}: remove one")
        seen[found] = line
        rows[os.path.dirname(found), label, split or row[2].strip()].append(os.path.basename(found))
    if missing and not skip:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{where} names images that are not below {displayed(root)}: {', '.join(missing[:_SHOWN])}{more}. Bring "
            "them there, remove the lines, or set data.on_bad_image='skip'"
        )
    if missing:
        unread.add(f"that {name} names and that are not there", len(missing))
    if others := len(places) - len(seen):
        unread.add(f"images that {name} does not name", others)
    for (folder, label, part), names in rows.items():
        yield folder, names, label, part


class _Sought:
    """Finds the file that an entry of a table means: a path, a name, or a name without its ending."""

    def __init__(self, places: set[str]) -> None:
        self._places = places
        self._names: dict[str, list[str]] = collections.defaultdict(list)
        for place in places:
            name = os.path.basename(place)
            self._names[name].append(place)
            if (stem := os.path.splitext(name)[0]) != name:
                self._names[stem].append(place)

    def find(self, asked: str) -> str | None:
        path = os.path.normpath(asked.replace("\\", "/"))
        if path in self._places:
            return path
        # Where an entry has folders the file must lie in such: another split's has the same name.
        named = [place for place in self._names.get(os.path.basename(path), []) if _ends_with(place, path)]
        return named[0] if len(named) == 1 else None


def _ends_with(place: str, path: str) -> bool:
    """Whether a file's place ends with a path that may lack its ending."""
    return f"/{place}".endswith(f"/{path}") or f"/{os.path.splitext(place)[0]}".endswith(f"/{path}")


def _rows(root: str, name: str, visit: Visit) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Yields the number of each line with its path, label and split."""
    path = os.path.join(root, name)
    where = displayed(path)
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            visit(name, os.fstat(file.fileno()))
            head = file.readline()
            delimiter = max(",;\t", key=head.count)
            header = next(csv.reader([head], delimiter=delimiter), [])
            columns = _columns([name.strip() for name in header], where)
            reader = csv.reader(file, delimiter=delimiter)
            for row in reader:
                if not any(row):
                    continue
                if len(row) <= max(columns):
                    raise DataError(f"{where}, line {reader.line_num + 1} has {len(row)} of {len(header)} columns")
                split = row[columns[2]] if columns[2] >= 0 else ""
                yield reader.line_num + 1, (row[columns[0]], row[columns[1]], split)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from None
    except csv.Error as error:
        raise DataError(f"{where} is no table of comma-separated values ({error}): save it as CSV again") from None


def _columns(header: Sequence[str], where: str) -> tuple[int, int, int]:
    """Where path, label and split stand; the last is -1 where it does not."""
    lower: Mapping[str, int] = {name.lower(): number for number, name in reversed(list(enumerate(header)))}
    path, label, split = (next((n for n in names if n in lower), "") for names in (_PATHS, LABELS, _SPLITS))
    if not path or not label:
        raise DataError(
            f"{where} has the columns {', '.join(header) or '(none)'}: call the one with the images 'path', and the "
            "one with their classes 'label'"
        )
    return lower[path], lower[label], lower.get(split, -1)
