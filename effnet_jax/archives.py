"""Arrays in archives of any origin, read without believing what they say of their own size.

A header may promise more than the file holds, and a small file may unpack to more than the memory: both are told before
room is taken for them.
"""

import contextlib
import errno
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self, cast

import numpy as np

# A member of an archive of weights may unpack to so much; numbers that were trained hardly compress.
_LEAST_UNPACKED, _MOST_TIMES = 2**28, 20


class ArchiveError(ValueError):
    """A member of an archive is damaged, or says of itself what is not so. The message says what."""


def free_memory() -> int:
    """Bytes of memory that can be had; all that there are where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63


def most_unpacked(path: Path) -> int:
    """Bytes that what is in an archive of weights may come to; more is not of this kind."""
    return max(_LEAST_UNPACKED, _MOST_TIMES * path.stat().st_size)


def is_damage(error: OSError) -> bool:
    """Whether an error is of the file's content and not of the disk.

    The decompressors' own complaints have no number; EINVAL is a place before the file's begin, which a damaged
    directory of an archive may name.
    """
    return error.errno in (None, errno.EINVAL)


class Npz:
    """An `.npz` file. Its arrays are of numbers or texts; objects are refused. A context manager.

    Attributes:
      names: of the arrays.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Opens it.

        Raises:
          ArchiveError: it is no `.npz`.
          OSError: it is not there, or cannot be read.
        """
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # BadZipFile, and what its parser runs into
            if isinstance(error, OSError) and not is_damage(error):
                raise
            raise ArchiveError(str(error)) from None
        self.names = [name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._archive.close()

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of one array.

        Raises:
          ArchiveError: it is damaged, holds objects, or promises more than there is.
        """
        with _told(name), self._archive.open(f"{name}.npy") as file:
            shape, _, dtype, _ = _header(file, self._archive.getinfo(f"{name}.npy").file_size)
        return shape, dtype

    def read(self, name: str) -> np.ndarray:
        """One array; the archive's checksum is verified.

        Raises:
          ArchiveError: likewise, or it needs more memory than there is.
        """
        with _told(name), self._archive.open(f"{name}.npy") as file:
            shape, fortran, dtype, size = _header(file, self._archive.getinfo(f"{name}.npy").file_size)
            if size > (free := free_memory()):
                raise ArchiveError(f"it takes {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free")
            content = np.empty(size, np.uint8)
            view, done = content.data, 0
            while done < size and (count := cast(zipfile.ZipExtFile, file).readinto(view[done:])):
                done += count
            file.read(1)  # at the end of a member its checksum is compared
            if done < size:
                raise ArchiveError("it is cut off")
        return content.view(dtype).reshape(shape, order="F" if fortran else "C")


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"{name}: {error}") from None
    except OSError as error:
        if not is_damage(error):
            raise
        raise ArchiveError(f"{name} is damaged: {error}") from None
    except Exception as error:  # whatever decompressors and parsers make of foreign bytes
        raise ArchiveError(f"{name} is damaged: {error or type(error).__name__}") from None


def _header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Reads the header of an array file of `size` bytes: shape, whether in Fortran's order, type, bytes."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ArchiveError("it holds Python objects, which are not read")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or (count and not dtype.itemsize):
        raise ArchiveError(f"an array of {dtype} cannot have the shape {shape}")
    if count * dtype.itemsize > size - file.tell():
        raise ArchiveError(
            f"it says that it has {count * dtype.itemsize:,} bytes, and there are {size - file.tell():,}: it is cut off"
        )
    return shape, fortran, dtype, count * dtype.itemsize
