"""Walking through folders of images as people have them: what counts, what is passed over, what could not be read."""

import collections
import functools
import os
import unicodedata
from collections.abc import Callable, Iterator

from effnet_jax.data.sources.base import Read
from effnet_jax.errors import DataError

Tell = Callable[[int], None]  # the number of images so far
# Is told what a listing follows from: a folder that was listed or a table that was read, relative to the root, and its
# status.
Visit = Callable[[str, os.stat_result], None]

# What other programs leave behind, and nobody means.
_SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "__pycache__", "lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
# Formats whose plugin in Pillow needs another program, reads a part of the format's files, or reads none.
_NOT_READ = frozenset((".bufr", ".emf", ".eps", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg", ".pcd", ".ps", ".wmf"))
_TO_CONVERT = frozenset(
    (".heic", ".heif", ".jxl", ".exr", ".hdr", ".svg", ".pdf", ".eps")
    + (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2")
)
_BROKEN = "broken links"
_SHOWN = 5


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of the image files that Pillow reads here, in lower case."""
    from PIL import Image

    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(readable - _NOT_READ)


class Unread:
    """What was not read, by kind and number, to be told once."""

    def __init__(self) -> None:
        self._kinds: collections.Counter[str] = collections.Counter()
        self._empty: list[str] = []
        self._notes: list[str] = []
        self.ignored: set[str] = set()  # endings that are not worth a word

    def add(self, kind: str, number: int = 1) -> None:
        """Counts files of a kind."""
        self._kinds[kind] += number

    def file(self, name: str) -> None:
        """Counts a file that has no image's ending."""
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in self.ignored:
            self.add(f"{suffix} (convert them)" if suffix in _TO_CONVERT else suffix or "without an ending")

    def empty_class(self, folder: str) -> None:
        """Notes a class folder without images."""
        self._empty.append(displayed(folder))

    def note(self, words: str) -> None:
        """Notes what else is to be told."""
        self._notes.append(words)

    @property
    def passing(self) -> bool:
        """Whether what was not read may be there the next time, as what is behind a broken link may be."""
        return bool(self._kinds[_BROKEN])

    def words(self) -> str:
        """All in one sentence; nothing where there is nothing to tell."""
        words = list(self._notes)
        if total := self._kinds.total():
            listed = ", ".join(f"{count:,} {kind}" for kind, count in self._kinds.most_common())
            words.append(f"{total:,} file{'s were' if total > 1 else ' was'} not read: {listed}")
        if self._empty:
            more = f" and {len(self._empty) - _SHOWN} more" if len(self._empty) > _SHOWN else ""
            words.append(f"class folders without images: {', '.join(self._empty[:_SHOWN])}{more}")
        return "; ".join(words)


def entries(folder: str) -> tuple[list[str], list[os.DirEntry], os.stat_result]:
    """Names of the folders in a folder, its files, both in the order of their names, and its own status.

    Hidden ones and those that programs leave behind are left out; of a run dir there is nothing.

    Raises:
      DataError: it cannot be listed.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:
            visible = sorted((entry for entry in found if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{displayed(folder)} cannot be listed ({error.strerror or error}): give it permission to be read, or move "
            "it out of the way"
        ) from None
    names = {entry.name for entry in visible}
    if "config.json" in names and (names & {"metrics.jsonl", "checkpoints"} or _only_json(names)):  # what a run writes
        return [], [], status
    folders = [entry.name for entry in visible if entry.is_dir() and entry.name not in _SYSTEM_FOLDERS]
    return folders, [entry for entry in visible if not entry.is_dir()], status


def _only_json(names: set[str]) -> bool:
    """Whether a folder has what a run writes first, and no image."""
    return "data.json" in names and not any(os.path.splitext(name)[1].lower() in suffixes() for name in names)


def images_in(files: list[os.DirEntry], unread: Unread) -> list[str]:
    """The names of the image files among files; what else there is, is counted."""
    known, names = suffixes(), []
    for entry in files:
        name = entry.name
        if not entry.is_file():
            unread.add(_BROKEN if entry.is_symlink() else "special files")
        elif os.path.splitext(name)[1].lower() in known:
            names.append(name)
        elif name.lower() not in _SYSTEM_FILES:
            unread.file(name)
    return names


def walk(root: str, folder: str, unread: Unread, visit: Visit) -> Iterator[tuple[str, list[str]]]:
    """Walks through a folder and all below it, through links too.

    Args:
      root: what paths are relative to.
      folder: relative.
      unread: counts what is not read.
      visit: is told each folder and its status.

    Yields:
      A folder, relative, and the names of the image files directly in it, where there are any.

    Raises:
      DataError: a folder that cannot be listed.
    """
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(folder, ())]
    while waiting:
        here, above = waiting.pop()
        folders, files, status = entries(os.path.join(root, here))
        key = (status.st_dev, status.st_ino)
        if key in above:
            unread.add("linked folders that lead back into themselves")
            continue
        visit(here, status)
        if names := images_in(files, unread):
            yield here, names
        waiting += [(os.path.join(here, name), (*above, key)) for name in reversed(folders)]


def normal(name: str) -> str:
    """The name of a class, the same whatever Unicode form the disk keeps names in."""
    return displayed(unicodedata.normalize("NFC", name))


def displayed(path: str) -> str:
    """A path as text that can be printed, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_file(path: str, label: int) -> Read:
    """The bytes of one image file, with its label and path; or why it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall(), label, displayed(path)
    except (OSError, ValueError) as error:  # a path out of a damaged table may hold a zero
        return DataError(f"{displayed(path)} cannot be read: {getattr(error, 'strerror', None) or error}")
