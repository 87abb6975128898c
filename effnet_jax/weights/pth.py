"""Reader of PyTorch's `.pth` files, without PyTorch, that can build nothing but tensors.

Formats: torch/serialization.py, both the older one (pickles, then the storages' bytes one after the other) and the
newer zip archive. A pickle may call any function that it can name, so only the three names that a state dict of
tensors needs are known here, and each stands for a plain record: no code of the file's choice is ever run.
"""

import collections
import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from effnet_jax.archives import is_damage, most_unpacked
from effnet_jax.errors import CheckpointError
from effnet_jax.weights.checkpoint import Checkpoint, Entry

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MOST_AXES = 32  # NumPy has 64

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_DOWNLOAD_AGAIN = "install the package or download the file again"


class _StorageType(NamedTuple):
    """Stands for a class such as `torch.FloatStorage`."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """A run of numbers in the file."""

    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """A view of a storage, not yet read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stands for `torch._utils._rebuild_tensor_v2`."""
    tensor = _Tensor(storage, offset, tuple(shape), tuple(strides))
    numbers = (offset, *tensor.shape, *tensor.strides)
    if not isinstance(storage, _Storage) or not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
        raise pickle.UnpicklingError("a tensor without a storage")
    if len(tensor.shape) != len(tensor.strides):
        raise pickle.UnpicklingError("a tensor whose shape and strides differ in length")
    if len(tensor.shape) > _MOST_AXES or math.prod(filter(None, tensor.shape)) >= 2**40:
        raise pickle.UnpicklingError(f"a tensor of shape {tensor.shape}")
    return tensor


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that knows ordered dicts, tensors and their storages, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        raise _ForeignObjectError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(count), *_) if count >= 0:
                return _Storage(key, dtype, count)
        raise pickle.UnpicklingError("an unknown kind of storage")


class _ForeignObjectError(pickle.UnpicklingError):
    """The pickle names something that is no tensor."""


class TorchFile(Checkpoint):
    """The tensors of a state dict saved with `torch.save`.

    torch.hub's file names end in the first eight digits of the file's SHA-256 (`…-57934424.pth`). Where the name has
    them they are compared: the older format has no other checksum.

    Raises:
      CheckpointError: the file is damaged, or holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path
        self.files = (path,)
        digest = re.fullmatch(r".*-(?!20\d{6}$)([0-9a-f]{8})", path.stem)  # eight digits may be a date
        if digest and not (actual := self.sha256()[path.name]).startswith(digest[1]):
            raise CheckpointError(
                f"{path} is damaged: its name says that its SHA-256 starts with {digest[1]}, but it is {actual[:8]}…; "
                f"{_DOWNLOAD_AGAIN}, or rename it if it was changed on purpose"
            )
        # Of each storage: its position in the older format, its member of the archive in the newer one.
        self._places: Mapping[str, int | str]
        try:
            if zipfile.is_zipfile(path):
                state, self._places = _read_zip(path)
            else:
                state, self._places = _read_legacy(path)
        except _ForeignObjectError as error:
            raise CheckpointError(
                f"{path} holds an object of {error}, which is no tensor; for safety only a plain state dict is read: "
                "save one in PyTorch with torch.save(model.state_dict(), path)"
            ) from None
        except Exception as error:  # a damaged pickle raises nearly anything
            if isinstance(error, OSError) and not is_damage(error):
                raise
            raise CheckpointError(f"{path} is no PyTorch file, or damaged ({error}): {_DOWNLOAD_AGAIN}") from None
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CheckpointError(
                f"{path} holds a {type(state).__name__} instead of a state dict of tensors: "
                "save one in PyTorch with torch.save(model.state_dict(), path)"
            )
        self._tensors: dict[str, _Tensor] = {}
        for name, tensor in state.items():
            if not isinstance(tensor, _Tensor):
                raise CheckpointError(
                    f"{path}: {name} is a {type(tensor).__name__} instead of a tensor; "
                    "save the state dict alone: torch.save(model.state_dict(), path)"
                )
            self._tensors[name] = tensor
        self.entries = {name: Entry(tensor.shape, tensor.storage.dtype.name) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor."""
        self._entry(name)
        tensor = self._tensors[name]
        reach = tensor.offset + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
        )
        if 0 in tensor.shape:
            return np.empty(tensor.shape, tensor.storage.dtype)
        if reach >= tensor.storage.length or math.prod(tensor.shape) > tensor.storage.length:
            raise CheckpointError(f"{self.source}: {name} reaches beyond its storage: {_DOWNLOAD_AGAIN}")
        if not _is_dense(tensor):
            raise CheckpointError(
                f"{self.source}: {name} is a view of shape {tensor.shape} with strides {tensor.strides}, which are no "
                f"weights of a network: {_DOWNLOAD_AGAIN}, or save a copy of it (tensor.clone())"
            )
        numbers = np.frombuffer(self._read_storage(name, tensor.storage), tensor.storage.dtype.newbyteorder("<"))
        strides = [stride * numbers.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
        return np.array(view, tensor.storage.dtype, order="C")

    def _read_storage(self, name: str, storage: _Storage) -> bytes:
        size = storage.length * storage.dtype.itemsize
        place = self._places.get(storage.key)
        try:
            if isinstance(place, int):
                with self.source.open("rb") as file:
                    file.seek(place)
                    raw = file.read(min(size, self.source.stat().st_size))  # a size that lies takes no room
            elif place is not None:
                with zipfile.ZipFile(self.source) as archive:
                    raw = archive.read(place)  # its checksum is verified
            else:
                raw = b""
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            if isinstance(error, OSError) and not is_damage(error):
                raise
            raise CheckpointError(f"{self.source}: {name} is damaged ({error}): {_DOWNLOAD_AGAIN}") from None
        if len(raw) != size:
            raise CheckpointError(
                f"{self.source}: {name} has {len(raw)} bytes instead of {size}, so the file is cut off: "
                f"{_DOWNLOAD_AGAIN}"
            )
        return raw


def _is_dense(tensor: _Tensor) -> bool:
    """Whether each number of a stretch of the storage is one of the tensor's, in any order of the axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _read_legacy(path: Path) -> tuple[Any, dict[str, int]]:
    """Returns the state dict, and the position of each storage's numbers."""
    with path.open("rb") as file:
        if _load(file) != _LEGACY_MAGIC or _load(file) != _LEGACY_PROTOCOL:
            raise pickle.UnpicklingError("wrong magic number")
        if _load(file).get("little_endian") is not True:
            raise pickle.UnpicklingError("it was written on a big-endian machine")
        _check_places(file)
        unpickler = _RememberingUnpickler(file)
        state = unpickler.load()
        places = {}
        for key in _load(file):
            storage = unpickler.storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            if count != storage.length:
                raise pickle.UnpicklingError(f"storage {key} has {count} numbers instead of {storage.length}")
            places[key] = file.tell()
            file.seek(count * storage.dtype.itemsize, io.SEEK_CUR)
        return state, places


class _RememberingUnpickler(_TensorUnpickler):
    """Remembers the storages: in the older format their sizes follow from their types."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        storage = super().persistent_load(pid)
        self.storages[storage.key] = storage
        return storage


def _load(file: BinaryIO) -> Any:
    _check_places(file)
    return _TensorUnpickler(file).load()


def _check_places(file: BinaryIO) -> None:
    """Raises UnpicklingError where a pickle remembers an object under a number that it cannot have come to.

    The unpickler makes a table that reaches to the highest: five bytes would take 64 GB.
    """
    begin = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(str(argument)) <= count:
            raise pickle.UnpicklingError(f"object {argument} after {count} steps")
    file.seek(begin)


def _read_zip(path: Path) -> tuple[Any, dict[str, str]]:
    """Returns the state dict, and the archive's member that holds each storage."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if sum(info.file_size for info in archive.infolist()) > most_unpacked(path):
            raise pickle.UnpicklingError("it unpacks to many times its size")
        (pickled,) = [name for name in names if name.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("it was written on a big-endian machine")
        state = _load(io.BytesIO(archive.read(pickled)))
        folder = f"{root}data/"
        return state, {name.removeprefix(folder): name for name in names if name.startswith(folder)}
