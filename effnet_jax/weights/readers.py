"""Opens whatever weights come in, the kind told from the file."""

import contextlib
import gzip
import math
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np

from effnet_jax.archives import ArchiveError, Npz, is_damage, most_unpacked
from effnet_jax.errors import CheckpointError, nearest
from effnet_jax.files import full_disk
from effnet_jax.weights.checkpoint import Checkpoint, Entry
from effnet_jax.weights.h5 import KerasFile
from effnet_jax.weights.hub import HUB, download
from effnet_jax.weights.pth import TorchFile
from effnet_jax.weights.published import find_published
from effnet_jax.weights.safetensors import SafetensorsFile
from effnet_jax.weights.tensor_bundle import INDEX_ENDING, TensorBundle, index_path
from effnet_jax.weights.tfjs import FILE, GraphModelFile

__all__ = ["Checkpoint", "NumpyFile", "open_checkpoint"]

_MOST_MEMBERS = 10_000  # of an archive; a published one has ten
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_TENSORS = "model.safetensors"
_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")
KINDS = (
    "a checkpoint's prefix (…/model.ckpt) or folder, the published .tar.gz, an .npz of arrays under TensorFlow's "
    "names, timm's .safetensors or its folder, a .pth, Keras' .h5, .weights.h5 or .keras, or a graph model's model.json"
)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens weights of any known kind. Use the result as a context manager.

    Args:
      path: a checkpoint's prefix (or one of its files), its folder, an archive with one checkpoint, an `.npz` of arrays
        under TensorFlow's names, timm's `.safetensors`, the folder with it or its hub id (`hf://…`), a `.pth` with a
        state dict, a file of Keras (`.h5`, `.weights.h5`, `.keras`), or the `model.json` of a graph model of
        TensorFlow.js or its folder.

    Returns:
      Its arrays, not yet read.

    Raises:
      CheckpointError: there is nothing, nothing of a known kind, more than one checkpoint, damage, or no room to
        unpack it.
    """
    if str(path).startswith(HUB):
        path = download(str(path))
    elif "://" in str(path):
        raise CheckpointError(f"{path} is an address: download it, and give the file")
    path = Path(path).expanduser()
    if path.is_dir():
        if (path / _TENSORS).is_file():  # a folder as on Hugging Face's hub
            return SafetensorsFile(path / _TENSORS)
        if (path / FILE).is_file():
            return GraphModelFile(path / FILE)
        return TensorBundle(_prefix_in_folder(path))
    name = path.name
    if path.is_file():
        if name.endswith(_ARCHIVES):
            return _open_archive(path)
        if path.suffix == ".npz":
            return NumpyFile(path)
        if path.suffix in (".pth", ".pt", ".bin"):
            return TorchFile(path)
        if path.suffix == ".safetensors":
            return SafetensorsFile(path)
        if path.suffix in (".h5", ".keras", ".hdf5"):
            return KerasFile(path)
        if path.suffix == ".json":
            return GraphModelFile(path)
    for ending in (re.escape(INDEX_ENDING) + "$", _DATA.pattern, r"\.meta$"):
        name = re.sub(ending, "", name)
    prefix = path.with_name(name)
    if index_path(prefix).exists() or any(_DATA.search(str(file)) for file in _siblings(prefix)):
        return TensorBundle(prefix)
    if path.is_file():
        raise CheckpointError(f"{path} is of no known kind: give {KINDS}")
    if known := find_published(name):
        raise CheckpointError(
            f"there is no file {path}; the published weights {known.name} need no porting: give their name wherever a "
            f"weights dir may be, or take python -m effnet_jax.weights get {known.name} OUT"
        )
    around = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, around) if 0 < len(around) <= 50 else f"give {KINDS}"
    raise CheckpointError(f"there is no file, folder or checkpoint {path}: {near}")


def _siblings(prefix: Path) -> list[Path]:
    """Returns the files whose names start with the prefix's."""
    if not prefix.parent.is_dir():
        return []
    return [file for file in prefix.parent.iterdir() if file.name.startswith(f"{prefix.name}.")]


def _prefix_in_folder(folder: Path) -> Path:
    """Returns the prefix that the folder's `checkpoint` file names where that is usable, else that of the one index."""
    if (folder / "metadata.json").exists():
        raise CheckpointError(f"{folder} is a weights dir already: use it as it is, nothing has to be ported")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        named = re.search(r'^model_checkpoint_path:\s*"(.+)"\s*$', (folder / "checkpoint").read_text(), re.MULTILINE)
        # The path is often that of the machine which wrote it; its last part is what came along.
        if named and index_path(prefix := folder / PurePosixPath(named[1]).name).exists():
            return prefix
    indexes = sorted(file for file in folder.iterdir() if file.name.endswith(INDEX_ENDING) and file.name[0] != ".")
    if len(indexes) == 1:
        return indexes[0].with_name(indexes[0].name.removesuffix(INDEX_ENDING))
    if indexes:
        names = ", ".join(file.name.removesuffix(INDEX_ENDING) for file in indexes[:10])
        raise CheckpointError(f"{folder} holds {len(indexes)} checkpoints: name one of {names}")
    inside = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
    raise CheckpointError(f"{folder} holds no checkpoint (no *{INDEX_ENDING}), but {inside}: give {KINDS}")


def _open_archive(path: Path) -> Checkpoint:
    """Unpacks the one checkpoint of an archive into a temporary folder, which goes when the checkpoint is closed."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="effnet_jax-")))
        try:
            members = _unpack(path, folder)
        except (tarfile.TarError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise CheckpointError(f"the archive {path} is damaged or cut off ({error}): download it again") from None
        except ArchiveError as error:
            raise CheckpointError(
                f"the archive {path} is no published checkpoint ({error}): nothing was kept on your disk; get it from "
                "its source"
            ) from None
        except OSError as error:
            if full_disk(error):
                raise CheckpointError(
                    f"no space left in {folder.parent} to unpack {path}: free some, or set TMPDIR to another folder"
                ) from error
            if not is_damage(error):
                raise
            raise CheckpointError(f"the archive {path} is damaged ({error}): download it again") from None
        prefixes = [member.removesuffix(INDEX_ENDING) for member in members if member.endswith(INDEX_ENDING)]
        if not prefixes:
            listed = ", ".join(members[:10]) or "no file at all"
            raise CheckpointError(
                f"the archive {path} holds no checkpoint (no *{INDEX_ENDING}) but {listed}: give {KINDS}"
            )
        if len(prefixes) > 1:
            listed = ", ".join(prefixes[:10])
            raise CheckpointError(
                f"the archive {path} holds {len(prefixes)} checkpoints: unpack it and name one of {listed}"
            )
        checkpoint = TensorBundle(folder / prefixes[0])
        checkpoint.files = (path,)
        checkpoint.source = path
        checkpoint.keep(stack.pop_all())
        return checkpoint


def _unpack(path: Path, folder: Path) -> list[str]:
    """Copies the files of checkpoints out of an archive; returns the names of all files in it."""
    members, room = [], most_unpacked(path)
    with _plain(path) as content, tarfile.open(fileobj=cast(IO[bytes], _Bounded(content, room)), mode="r:") as archive:
        for count, member in enumerate(archive):
            if count == _MOST_MEMBERS:  # each takes memory
                raise ArchiveError(f"it has more than {_MOST_MEMBERS:,} files")
            place = PurePosixPath(member.name)
            if place.is_absolute() or ".." in place.parts or not (member.isfile() or member.isdir()):
                kind = "a link or device" if not (member.isfile() or member.isdir()) else "a path out of the archive"
                raise CheckpointError(
                    f"the archive {path} holds {kind}, {member.name!r}, so it is no published checkpoint: "
                    "nothing was unpacked to your disk; get it from its source"
                )
            if not member.isfile() or place.name.startswith("."):
                continue
            members.append(str(place))
            if place.name.endswith(INDEX_ENDING) or _DATA.search(place.name):
                target = folder / place
                target.parent.mkdir(parents=True, exist_ok=True)
                data = archive.extractfile(member)
                assert data is not None  # it is a regular file
                room -= member.size
                if room < 0:
                    raise ArchiveError("it unpacks to many times its size")
                if target.exists():
                    raise CheckpointError(f"the archive {path} holds {member.name!r} twice: get it from its source")
                with target.open("xb") as file:
                    shutil.copyfileobj(data, file, 1 << 20)
    return members


def _plain(path: Path) -> IO[bytes]:
    """Opens what an archive unpacks to."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


class _Bounded:
    """A file that is read up to a place: tarfile takes into memory as many bytes as a header asks for."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._most = file, most
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        self._check(self.tell() + size if size >= 0 else self._most + 1)
        return self._file.read(size)

    def seek(self, place: int) -> int:
        self._check(place)
        return self._file.seek(place)

    def _check(self, place: int) -> None:
        if place > self._most:
            raise ArchiveError("it unpacks to many times its size")


class NumpyFile(Checkpoint):
    """The arrays of an `.npz`, under TensorFlow's names. Pickled objects in it are refused.

    Raises:
      CheckpointError: the file is damaged or holds objects.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path
        self.files = (path,)
        try:
            self._archive = Npz(path)
            self.keep(self._archive)
            headers = {name: self._archive.header(name) for name in self._archive.names}
            if sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers.values()) > most_unpacked(path):
                raise ArchiveError("it unpacks to many times its size")
        except ArchiveError as error:
            self.close()
            raise CheckpointError(f"{path} is no .npz, or damaged ({error}): make or download it again") from None
        self.entries = {name: Entry(shape, dtype.name) for name, (shape, dtype) in headers.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns one array; the archive's checksum is verified."""
        self._entry(name)
        try:
            array = self._archive.read(name)
        except ArchiveError as error:
            raise CheckpointError(f"{self.source}: {error}; make or download it again") from None
        return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
