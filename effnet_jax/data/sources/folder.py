"""Image folders: `root/split/class/…`; `root/class/…`, which is split by hash; or a `labels.csv` beside the images."""

import hashlib
import os
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from effnet_jax.cache import cache_folder
from effnet_jax.data.sources.base import EncodedSource, expand
from effnet_jax.data.sources.dataset import Dataset, class_order
from effnet_jax.data.sources.labels_csv import find_labels, labelled_files
from effnet_jax.data.sources.listing import Tell, Unread, Visit, displayed, entries, images_in, normal, suffixes, walk
from effnet_jax.data.sources.splits import CALLED, called, parse_split, split_names
from effnet_jax.data.sources.table import Files, TableBuilder, keep_table, kept_table
from effnet_jax.errors import DataError

# Of a root without splits: this share of the hashes is train, this validation, the rest test.
HASH_SHARES = (("train", 0.8), ("validation", 0.1), ("test", 0.1))


def open_folder(
    root: str,
    expressions: Iterable[str] = ("all",),
    *,
    on_bad_image: str = "error",
    class_names: Sequence[str] = (),
    tell: Tell | None = None,
) -> Dataset:
    """Opens an image folder.

    Args:
      root: the folder.
      expressions: that will be asked for: only the splits that they name are looked at.
      on_bad_image: `"error"` or `"skip"`.
      class_names: an order of the classes to keep, where they are the same.
      tell: hears of the images while they are listed: their number so far.

    Returns:
      The data set. Its classes are the folders' names in alphabetical order, or by number where all are numbers.

    Raises:
      DataError: a folder that is not laid out as expected, or cannot be listed.
    """
    root = expand(root)
    asked = tuple(sorted({name for expression in expressions for name in split_names(expression)}))
    skip = on_bad_image == "skip"
    place = _place(root, asked, skip)
    if kept := kept_table(place, root):
        table, about = kept
    else:
        if not os.path.isdir(root):
            raise DataError(f"{displayed(root)}: there is no such folder")
        began, changed, unread = time.time_ns(), {}, Unread()

        def visit(folder: str, status: os.stat_result) -> None:
            changed[folder] = status.st_mtime_ns

        builder, known = _list(root, asked, skip, unread, visit, tell or (lambda number: None))
        about = {"note": unread.words(), "known": known}
        table = builder.build()
        if not unread.passing:
            table = keep_table(place, table, changed, began, about)
    names = class_order(table.class_names, class_names)
    numbers = tuple(names.index(name) for name in table.class_names)
    sizes = {name: stop - start for name, (start, stop) in table.splits.items()}

    def split(expression: str) -> EncodedSource:
        parts = parse_split(expression, sizes, displayed(root), known=about["known"])
        firsts = {name: table.splits[name][0] for name, _, _ in parts}
        spans = [range(firsts[name] + start, firsts[name] + stop) for name, start, stop in parts]
        rows: Any = spans[0] if len(spans) == 1 else np.concatenate([np.arange(s.start, s.stop) for s in spans])
        files = Files(table, rows, numbers)
        return EncodedSource(f"{displayed(root)} {expression}", files, names, files.labels, on_bad_image=on_bad_image)

    return Dataset(displayed(root), names, sizes, split, notes=(about["note"],) if about["note"] else ())


def _place(root: str, asked: Sequence[str], skip: bool) -> str:
    """Where the listing of a large folder is kept for the next time."""
    # What is an error without `skip` must not be passed over because of a listing with it.
    of = "\0".join([os.path.realpath(root), *asked, "skip" * skip, *sorted(suffixes())])
    return os.fspath(cache_folder("listings", hashlib.sha256(os.fsencode(of)).hexdigest()[:32]))


def _list(
    root: str, asked: Collection[str], skip: bool, unread: Unread, visit: Visit, tell: Tell
) -> tuple[TableBuilder, list[str]]:
    """Lists what was asked for. Returns its images, and the names of all splits that there are."""
    layout = f"expected {displayed(root)}/split/class/image.jpg or {displayed(root)}/class/image.jpg"
    tops, files, status = entries(root)
    visit("", status)
    splits = _split_folders(root, tops, asked)
    if not splits and (tables := find_labels(files)):
        rows = [row for file in tables for row in labelled_files(root, *file, skip=skip, unread=unread, visit=visit)]
        named = sorted({split for *_, split in rows if split})
        builder = TableBuilder(root, () if named else HASH_SHARES)
        asked_for = {split: name for name in asked if (split := called(name, named))}
        for folder, names, label, split in rows:
            if split or not named:  # a line without a split belongs to none
                builder.add(folder, names, label, asked_for.get(split, split))
            else:
                unread.add(f"that {tables[0][0]} gives no split", len(names))
        tell(len(builder))
        return builder, named or [name for name, _ in HASH_SHARES]
    builder = TableBuilder(root, () if splits else HASH_SHARES)
    if splits and (tables := find_labels(files)):
        folders = ", ".join(f"{displayed(folder)}/" for folder in splits.values())
        unread.note(
            f"{tables[0][0]} was not read, since {folders} hold folders, which are taken for the classes: to have "
            "the table's labels, call the folders otherwise"
        )
    for split, folder in splits.items():
        _add_classes(builder, root, folder, split, unread, visit, tell)
    if splits:
        return builder, [*splits, *(top for top in tops if top not in splits.values() and _is_split(root, top))]
    for top in tops:
        here = len(builder)
        for folder, names in walk(root, top, unread, visit):
            builder.add(folder, names, normal(top))
            tell(len(builder))
        if len(builder) == here:
            unread.empty_class(top)
    if outside := images_in(files, unread):
        if not len(builder):
            raise DataError(f"{displayed(root)} holds images directly, without classes: {layout}")
        unread.add("images outside of the class folders", len(outside))
    if not len(builder):
        found = f" ({unread.words()})" if unread.words() else ""
        raise DataError(f"{displayed(root)} holds no images{found}: {layout}")
    return builder, [name for name, _ in HASH_SHARES]


def _add_classes(
    builder: TableBuilder, root: str, folder: str, split: str, unread: Unread, visit: Visit, tell: Tell
) -> None:
    """Adds the images of a split's folder."""
    classes, files, status = entries(os.path.join(root, folder))
    visit(folder, status)
    before = len(builder)
    for name in classes:
        here = len(builder)
        for place, names in walk(root, os.path.join(folder, name), unread, visit):
            builder.add(place, names, normal(name), split)
            tell(len(builder))
        if len(builder) == here:
            unread.empty_class(os.path.join(folder, name))
    outside = images_in(files, unread)
    if len(builder) > before:
        if outside:
            unread.add(f"images in {displayed(folder)} outside of the class folders", len(outside))
        return
    place = displayed(os.path.join(root, folder))
    if outside:
        raise DataError(
            f"{place} holds images without class folders, so that their labels are unknown: set "
            f"data.{_role(split)}='', or sort them into folders named after the classes"
        )
    found = f" ({unread.words()})" if unread.words() else ""
    raise DataError(f"{place} is an empty split{found}: add class folders with images, or set data.{_role(split)}=''")


def _role(split: str) -> str:
    return next((role for role, names in CALLED.items() if split.lower() in names), split)


def _split_folders(root: str, tops: Sequence[str], asked: Collection[str]) -> dict[str, str]:
    """The folders of the splits that are asked for: {split: folder}; none where the folders are classes."""
    wanted = [name for name in asked if name != "all"]
    if len(wanted) < len(asked):
        known = [name for name, names in CALLED.items() if any(top.lower() in names for top in tops)]
        wanted += [name for name in (known or _folds(root, tops)) if name not in wanted]
    found = {name: folder for name in wanted if (folder := called(name, tops))}
    # Folders that are called so may be classes: a split holds folders, or stands beside one that does.
    others = {top for top in tops if any(top.lower() in names for names in CALLED.values())}
    return found if any(_is_split(root, folder) for folder in {*found.values(), *others}) else {}


def _folds(root: str, tops: Sequence[str]) -> list[str]:
    """Folders of other names that are splits: each holds folders, and some of them are called the same."""
    below = {top: set(entries(os.path.join(root, top))[0]) for top in tops}
    if len(tops) > 1 and all(_is_split(root, top) for top in tops) and set.intersection(*below.values()):
        return list(tops)
    return []


def _is_split(root: str, folder: str) -> bool:
    """Whether a folder holds folders, and no images directly."""
    folders, files, _ = entries(os.path.join(root, folder))
    return bool(folders) and not images_in(files, Unread())
