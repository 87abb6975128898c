"""Paths and files of run dirs and weights dirs, on a disk or in a bucket (`gs://…`): the one door to both.

What is written is whole or absent. A disk gets it beside its place, from where it is moved; a bucket shows an object
once it is complete, but renames no folder, so there a file that is written last says that a folder is whole.
Names that begin with a dot are this module's own and never count as content.
"""

import contextlib
import csv
import errno
import glob
import importlib.util
import io
import json
import logging
import math
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from effnet_jax.errors import DiskError, PathError, RunError

AnyPath = str | os.PathLike[str]

_MARGIN = 2**20  # bytes for what lies beside arrays: indexes, metadata, logs
_CHUNK = 2**24
_PARTIAL = ".partial"
_SECONDS_BETWEEN_PUTS = 30.0

if importlib.util.find_spec("gcsfs"):
    # epath prefers TensorFlow wherever it is installed: seconds to import, and memory of the accelerator.
    os.environ.setdefault("EPATH_USE_TF", "false")

# ---- Paths ----


def as_path(path: AnyPath) -> epath.Path:
    """Returns a path, `~` expanded, on a disk or in a bucket.

    Raises:
      PathError: it is of another scheme, misspelled, or a bucket's without the packages for it.
    """
    text = os.fsdecode(os.fspath(path))
    if not text or "\0" in text:
        raise PathError(f"{text!r} is no path: give a folder or file, or gs://bucket/folder")
    if text.startswith("gs://"):
        return _bucket_path(text)
    if misspelled := re.match(r"(gs|gcs):/*", text, re.IGNORECASE):
        right = f"gs://{text[misspelled.end() :]}"
        raise PathError(f"{text!r} is no path: did you mean {right!r}? (as text: pathlib.Path drops a slash)")
    if scheme := re.match(r"\w[\w+.-]*://", text):
        raise PathError(f"{text!r}: {scheme[0]} is not supported: use a local folder, or gs:// for a bucket")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise PathError(f"{text!r}: there is no such user: write ./{text} where it is a name")
    return epath.Path(expanded)


def is_local(path: AnyPath) -> bool:
    """Whether a path is on a disk, not in a bucket."""
    return not os.fsdecode(os.fspath(path)).startswith("gs://")


def absolute(path: AnyPath) -> epath.Path:
    """Returns the path from the root, as orbax wants it; epath's own `absolute` and `resolve` break `gs://`."""
    return epath.Path(os.path.abspath(as_path(path))) if is_local(path) else as_path(path)


def _bucket_path(text: str) -> epath.Path:
    if importlib.util.find_spec("gcsfs") is None:
        raise PathError(f"{text}: buckets need more packages: pip install 'effnet-jax[gcs]'")
    names = text.removeprefix("gs://").rstrip("/").split("/")
    if not all(names) or {".", ".."} & set(names):
        raise PathError(f"{text!r} is no path in a bucket: write gs://bucket/folder")
    if odd := re.search(r"[*?\[\]#]", text):  # gcsfs takes them for patterns: removing one folder would remove others
        raise PathError(f"{text!r}: a path in a bucket cannot have {odd[0]!r}: use another name")
    import fsspec.config

    # With its cache, a folder that was listed once stays so for this process and a file keeps its length, whatever
    # other processes, or tensorstore in this one, write.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it also prints the traceback of each error that it raises
    return epath.Path(text)


@contextlib.contextmanager
def bucket_errors(path: epath.Path) -> Iterator[None]:
    """Puts what a bucket refuses, in the many exceptions of its clients, into words. Errors of a disk stay."""
    try:
        yield
    except Exception as error:
        known = PathError | RunError | FileExistsError | NotADirectoryError
        if is_local(path) or isinstance(error, known | TypeError | AttributeError):  # the last two are bugs
            raise
        if isinstance(error, FileNotFoundError) or "NOT_FOUND" in str(error):
            bucket = f"gs://{path.parts[2]}"
            raise PathError(f"{path}: there is no bucket {bucket}: check its name, or make it first") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise PathError(
            f"{path} cannot be reached ({reason}): check the permissions on the bucket, and that you are logged in "
            "(gcloud auth application-default login)"
        ) from error


# ---- Folders ----


def visible(folder: AnyPath) -> list[str]:
    """Returns the names in a folder that count as content, sorted; none where there is no folder."""
    return sorted(name for name in _names(as_path(folder)) if not name.startswith(".") and name != "lost+found")


def _names(folder: epath.Path) -> list[str]:
    if is_local(folder):
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(folder)
        return []
    own = str(folder).removeprefix("gs://")
    with bucket_errors(folder), contextlib.suppress(FileNotFoundError):
        entries = _bucket_client().ls(own, detail=True)
        if any(entry["name"] == own and entry["type"] == "file" for entry in entries):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        # A folder may list itself, where a console has put a placeholder.
        return [entry["name"].rpartition("/")[2] for entry in entries if entry["name"] != own]
    return []


def _bucket_client() -> Any:
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)  # the one that epath uses


def make_folder(path: AnyPath) -> None:
    """Makes a folder with its parents, if it is not there; a bucket needs none."""
    if is_local(path):
        as_path(path).mkdir(parents=True, exist_ok=True)


def remove(path: AnyPath) -> None:
    """Removes a file or a folder with all that is in it, if it is there."""
    place = as_path(path)
    if not is_local(place):
        with bucket_errors(place):
            for _ in range(2):  # placeholders of folders, as consoles make them, may hide what is in them at first
                place.rmtree(missing_ok=True)
    elif os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def move(old: AnyPath, new: AnyPath) -> None:
    """Moves a file or folder to a place that is free; in a bucket object by object.

    Raises:
      FileExistsError: the place is taken.
    """
    source, target = as_path(old), as_path(new)
    for place, wanted, code in ((source, True, errno.ENOENT), (target, False, errno.EEXIST)):
        if place.exists() != wanted:
            raise OSError(code, os.strerror(code), str(place))  # a FileNotFoundError, a FileExistsError
    if is_local(source):
        shutil.move(source, target)
        return
    with bucket_errors(source):
        client = _bucket_client()
        names = client.find(str(source))
        start = len(str(source).removeprefix("gs://"))
        client.copy(names, [f"{target}{name[start:]}" for name in names])
    remove(source)


def copy_folder(source: AnyPath, target: AnyPath) -> None:
    """Copies all files of a folder on a disk to a place on a disk or in a bucket, beside what is there."""
    for path in sorted(Path(as_path(source)).rglob("*")):
        if path.is_file():
            place = as_path(target) / path.relative_to(source).as_posix()
            make_folder(place.parent)
            write_bytes(place, path.read_bytes())


@contextlib.contextmanager
def new_folder(path: AnyPath, *, active: bool = True) -> Iterator[epath.Path]:
    """Makes a folder whole, or not at all.

    A disk gets it beside its place, hidden, from where it is moved when the block ends. A bucket gets it in its place,
    with a mark until the block ends: there, the file that makes it valid must be written last. What an attempt left
    that was killed is removed first.

    Args:
      path: the folder; it must not exist, or be empty.
      active: whether this process makes, moves and removes it. The others of a run write into it between barriers.

    Yields:
      The folder to write into, the same in all processes.

    Raises:
      FileExistsError: the place is taken.
    """
    final = absolute(path)
    place, mark = final, final / _PARTIAL
    if is_local(final):
        place = final.with_name(f".{final.name}{_PARTIAL}")
    if not active:
        yield place
        return
    if (names := _names(final)) and (is_local(final) or _PARTIAL not in names):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    remove(place)
    try:
        make_folder(place)
        if not is_local(final):
            write_bytes(mark, b"This folder is being written, or was left so.\n")
        yield place
        if is_local(final):
            os.rename(place, final)
        else:
            remove(mark)
    except BaseException:
        with contextlib.suppress(OSError, PathError):
            remove(place)
        raise


# ---- Files ----


def read_json(path: AnyPath) -> Any:
    """Returns the value of a JSON file; None where there is none.

    Raises:
      ValueError: it is damaged.
    """
    try:
        content = _read(as_path(path))
        return None if content is None else json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def write_json(path: AnyPath, value: Any) -> None:
    """Writes a JSON file, whole or not at all. What is no finite number becomes null."""
    write_bytes(path, (to_json_text(value, indent=2) + "\n").encode())


def to_json_text(value: Any, indent: int | None = None) -> str:
    """Returns strict JSON: NaN and infinities are null, arrays and tuples lists."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def to_csv_line(values: Iterable[Any]) -> str:
    """Returns a line of CSV with its end, a line feed; a line end within a value, of whatever kind, is quoted."""
    text = io.StringIO()
    csv.writer(text).writerow(values)  # with its own end, "\r\n", or a "\r" in a name would not be quoted
    return text.getvalue().removesuffix("\r\n") + "\n"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy or JAX
        value = value.tolist()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    place = as_path(path)
    if not is_local(place):
        with bucket_errors(place):
            place.write_bytes(data)
        return
    with new_file(place) as partial:
        partial.write_bytes(data)


def check_writable(path: AnyPath) -> None:
    """Makes the folder of a file, and finds out before the work that the file could not be written.

    Raises:
      PathError: it is a folder, or its folder cannot be made or written to. A bucket refuses when it is written to.
    """
    place = as_path(path)
    if not is_local(place):
        return
    if place.is_dir():
        raise PathError(f"{path} is a folder: name a file")
    try:
        make_folder(place.parent)
    except OSError as error:
        raise PathError(f"{path} cannot be written: {place.parent} cannot be made ({error.strerror})") from None
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise PathError(f"{path} cannot be written: {place.parent} may not be written to")


def drop_partials(path: AnyPath) -> None:
    """Removes what processes that were killed left beside a file of a disk (`new_file`); none may be writing it now."""
    place = Path(as_path(path))
    for left in place.parent.glob(f".{glob.escape(place.name)}.*{_PARTIAL}"):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: AnyPath) -> Iterator[Path]:
    """Gives a place beside a file on a disk to write it to: it comes into its own place whole, or not at all."""
    place = Path(as_path(path))
    partial = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}{_PARTIAL}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, place)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        if isinstance(error, OSError):
            error.filename = str(place)  # a full disk does not say where
        raise


def checksums(folder: AnyPath) -> dict[str, int]:
    """Returns the CRC-32C of each file in a folder on a disk and below, by relative path."""
    import google_crc32c

    result = {}
    for path in sorted(Path(as_path(folder)).rglob("*")):
        if path.is_file():
            checksum = google_crc32c.Checksum()
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    checksum.update(chunk)
            result[path.relative_to(folder).as_posix()] = int.from_bytes(checksum.digest(), "big")
    return result


def _read(path: epath.Path) -> bytes | None:
    with bucket_errors(path), contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


class Lines:
    """A log that grows: text by whole lines, or bytes.

    On a disk all that is appended outlives a kill of the process. A bucket cannot append: there the whole is written
    again, by a thread, half a minute after something came.
    """

    def __init__(self, path: AnyPath, *, binary: bool = False) -> None:
        """Opens a log to go on after what is there; of text, a last line that a kill cut off is dropped.

        Args:
          path: of the file.
          binary: whether it takes bytes, as they are.
        """
        self.path = as_path(path)
        if not binary:
            keep_lines(self.path)
        self._changes, self._puts = threading.Lock(), threading.Lock()
        self._timer: threading.Timer | None = None
        self._unsaved = False
        if is_local(self.path):
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        else:
            self._content = bytearray(_read(self.path) or b"")

    def append(self, data: str | bytes) -> None:
        """Adds a line of text (without its end), or bytes."""
        data = f"{data}\n".encode() if isinstance(data, str) else data
        with self._changes:
            if is_local(self.path):
                _append(self._file, data)
                return
            self._content += data
            self._unsaved = True
            if not self._timer:
                self._timer = threading.Timer(_SECONDS_BETWEEN_PUTS, self._put_later)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Waits until all is on the disk, or in the bucket."""
        if is_local(self.path):
            os.fsync(self._file)
        else:
            self._put()

    def close(self) -> None:
        """Flushes and closes."""
        try:
            self.flush()
        finally:
            if is_local(self.path):
                os.close(self._file)

    def _put(self) -> None:
        with self._puts:  # one after the other, and without holding up who appends
            with self._changes:
                content, unsaved = bytes(self._content), self._unsaved
                if self._timer:
                    self._timer.cancel()
                self._timer, self._unsaved = None, False
            try:
                if unsaved:
                    write_bytes(self.path, content)
            except BaseException:
                self._unsaved = True
                raise

    def _put_later(self) -> None:
        with contextlib.suppress(PathError):  # what comes next tries again, and flush tells
            self._put()


def read_lines(path: AnyPath) -> list[str]:
    """Returns the whole lines of a text file, without their ends; none where there is no file."""
    return [line.decode("utf-8", "replace") for line in _whole_lines(_read(as_path(path)))]


def keep_lines(path: AnyPath, count: int | None = None) -> None:
    """Cuts a text file to its first `count` whole lines, or to all that are whole."""
    content = _read(as_path(path)) or b""
    kept = b"".join(line + b"\n" for line in _whole_lines(content)[:count])
    if kept != content:
        write_bytes(path, kept)


def _whole_lines(content: bytes | None) -> list[bytes]:
    return (content or b"").split(b"\n")[:-1]


def _append(file: int, data: bytes) -> None:
    size = os.fstat(file).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        raise


# ---- Room ----


def check_space(path: AnyPath, size: int, what: str) -> None:
    """Checks that a disk has room: libraries find out in the middle of a write, in threads of their own.

    Args:
      path: what is going to be written; it and its parents need not exist. A bucket has room.
      size: bytes of its arrays.
      what: what messages call it.

    Raises:
      DiskError: there is too little room.
    """
    if not is_local(path):
        return
    folder = Path(absolute(path))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size + _MARGIN:
        raise DiskError(
            f"no space left on the disk for {what}: {(size + _MARGIN) / 1e6:.0f} MB are needed in {path}, and "
            f"{free / 1e6:.0f} MB are free; free some, or write elsewhere"
        )


def full_disk(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, says that a disk or a quota is full."""
    if error is None:
        return False
    if isinstance(error, DiskError) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return True
    # tensorstore's own writes fail with its own exceptions.
    if any(text in str(error) for text in ("No space left", "Disk quota exceeded", "ENOSPC")):
        return True
    return full_disk(error.__cause__ or error.__context__)


def allocate(path: AnyPath, size: int) -> None:
    """Makes a local file of zeros that has its room on the disk.

    A mapped file with holes would end the process by a signal where the disk fills up later.

    Raises:
      DiskError: there is too little room.
    """
    try:
        with open(path, "wb") as file:
            if not _reserve(file.fileno(), size):
                for start in range(0, size, _CHUNK):
                    file.write(bytes(min(_CHUNK, size - start)))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        if full_disk(error):
            raise DiskError(f"no space left on the disk for {path} ({size / 1e6:.0f} MB): free some") from None
        raise


def _reserve(file: int, size: int) -> bool:
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
            raise
        return False  # the file system cannot, or the size is 0
    return True
