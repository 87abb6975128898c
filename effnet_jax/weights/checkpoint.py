"""What every reader returns: named arrays in files, read one at a time."""

import abc
import contextlib
import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from effnet_jax.errors import CheckpointError, in_brief
from effnet_jax.weights.about import About


class Entry(NamedTuple):
    """Shape and type of one stored array, known before it is read. The type is NumPy's name for it."""

    shape: tuple[int, ...]
    dtype: str


class Checkpoint(abc.ABC):
    """Arrays under names. Nothing is read but the table of contents until `read` is called.

    Use it as a context manager: files stay open, and what an archive held lies in a temporary folder, until it ends.

    Attributes:
      source: the file that the user named, or the common path of a checkpoint's files without their endings.
      files: the files that a checksum of the whole covers (the archive itself where there is one).
      entries: name -> `Entry`.
      about: what they say of the weights.
    """

    source: Path
    files: tuple[Path, ...]
    entries: Mapping[str, Entry]
    about: About = About()

    def __init__(self) -> None:
        self._resources = contextlib.ExitStack()

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """Returns one array, in this machine's byte order, writeable, its checksum verified where the format has one.

        Raises:
          CheckpointError: the stored bytes are damaged or of a type that is not read.
        """

    def verify(self, name: str) -> None:
        """Checks the stored bytes of one array without returning it.

        Raises:
          CheckpointError: they are damaged.
        """
        self.read(name)

    def sha256(self) -> dict[str, str]:
        """Returns the SHA-256 of every file, as `sha256sum` prints it, by file name."""
        digests = {}
        for path in self.files:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests

    def keep(self, resource: contextlib.AbstractContextManager) -> None:
        """Ends `resource` together with this checkpoint."""
        self._resources.push(resource)

    def close(self) -> None:
        """Closes the files and removes what was unpacked."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise CheckpointError(f"{self.source} has no array named {name!r}") from None


def needs(package: str, what: object, extra: str = "formats") -> Any:
    """Imports a package that only one kind of file needs.

    Args:
      package: its name.
      what: needs it.
      extra: of this package that has it.

    Raises:
      CheckpointError: it is not installed; with the cure.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and package.startswith(str(error.name))
        broken = "" if missing else f", which is here and does not load ({in_brief(error)})"
        raise CheckpointError(f"{what} needs {package}{broken}: pip install 'effnet-jax[{extra}]'") from None
