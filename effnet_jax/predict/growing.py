"""A file that grows by whole records, is one process's, and can be gone on with."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from effnet_jax import files
from effnet_jax.errors import DiskError, PathError, RunError
from effnet_jax.files import AnyPath


def local_path(text: str) -> Path:
    """Returns the path of an output, `~` expanded.

    Raises:
      PathError: it is in a bucket, where nothing can be appended, or no path.
    """
    path = files.as_path(text)
    if not files.is_local(path):
        raise PathError(f"{text}: a bucket cannot append: write to a disk, and copy the file when it is done")
    return Path(path)


class GrowingFile(files.Lines):
    """Bytes that are appended whole or not at all, whatever the disk says. Another process is kept out."""

    def __init__(self, path: AnyPath) -> None:
        """Opens a file to go on after what is there.

        Args:
          path: on a disk (`local_path`).

        Raises:
          PathError: it cannot be written.
          RunError: another process writes it.
        """
        try:
            super().__init__(path, binary=True)
        except OSError as error:
            raise PathError(f"{path} cannot be written: {error.strerror or error}") from None
        if not _claim(self._file):
            os.close(self._file)
            raise RunError(f"{path} is being written by another process: wait for it, or give another name")

    def cut(self, size: int) -> None:
        """Drops what comes after the first `size` bytes."""
        os.ftruncate(self._file, size)

    def write(self, data: bytes, so_far: str) -> None:
        """Appends bytes.

        Args:
          data: of whole records.
          so_far: what the file has without them, for the message.

        Raises:
          DiskError: there is no room; the file is as it was.
        """
        try:
            self.append(data)
        except OSError as error:
            if not files.full_disk(error):
                error.filename = str(self.path)
                raise
            raise DiskError(
                f"no space left on the disk for {self.path}: {so_far} are in it, whole; free some, and give the same "
                "command again: it goes on from there"
            ) from None


def _claim(file: int) -> bool:
    try:
        import fcntl
    except ImportError:  # a system without these locks
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without them
        return True
    return True


def whole_records(file: BinaryIO, is_whole: Callable[[bytes], bool] = lambda record: True) -> Iterator[bytes]:
    """Yields the records of a file, with their ends; a last one that was cut off is left out.

    Args:
      file: open at a record's begin.
      is_whole: whether lines so far are a record, as a quoted line end of a CSV file is not.
    """
    record = b""
    for line in file:
        record += line
        if record.endswith(b"\n") and is_whole(record):
            yield record
            record = b""
