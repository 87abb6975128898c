"""CIFAR-10 and CIFAR-100 as their authors publish them: the python and binary archives, packed or unpacked.

Layouts: https://www.cs.toronto.edu/~kriz/cifar.html. Nothing is unpacked to disk. The python version consists of
pickles, which are read by an unpickler that can build nothing but plain values and stand-ins for arrays.
"""

import dataclasses
import io
import lzma
import math
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from effnet_jax.data.sources.arrays import join
from effnet_jax.data.sources.base import ArraySource, check_labels, expand
from effnet_jax.data.sources.dataset import Dataset
from effnet_jax.data.sources.splits import parse_split
from effnet_jax.errors import DataError

_PIXELS = 3 * 32 * 32
_LARGEST_FILE = 2**29  # more than twice the largest published one


@dataclasses.dataclass(frozen=True)
class Layout:
    """One of the four published forms.

    Attributes:
      name: of the archive.
      train: files of the training split, in order.
      test: files of the test split.
      names: file of the class names.
      names_key: their key in a pickled `names`; "" for a text file.
      label_key: key of the labels in a pickled batch; "" for a binary file.
      label_bytes: label bytes before the pixels of a binary record; the last of them is the (fine) class.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    names_key: str = ""
    label_key: str = ""
    label_bytes: int = 0

    @property
    def files(self) -> tuple[str, ...]:
        """All files that must be there."""
        return (*self.train, *self.test, self.names)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = (
    Layout("cifar-10-python", _BATCHES, ("test_batch",), "batches.meta", "label_names", "labels"),
    Layout(
        "cifar-10-binary",
        tuple(f"{batch}.bin" for batch in _BATCHES),
        ("test_batch.bin",),
        "batches.meta.txt",
        label_bytes=1,
    ),
    Layout("cifar-100-python", ("train",), ("test",), "meta", "fine_label_names", "fine_labels"),
    Layout("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", label_bytes=2),
)
_KNOWN = {file for layout in LAYOUTS for file in layout.files}


def is_cifar_folder(path: str) -> bool:
    """Whether a folder looks like an unpacked archive: it holds files (not folders) of one of the layouts."""
    present = {name for name in _KNOWN if os.path.isfile(os.path.join(path, name))}
    return any(set(layout.train) & present and layout.names in present for layout in LAYOUTS)


def open_cifar(path: str) -> Dataset:
    """Opens a CIFAR archive.

    Args:
      path: `cifar-100-python.tar.gz` and its like, or the folder that it unpacks to.

    Returns:
      The data set, with the splits `train` and `test` in the published order; fine labels for CIFAR-100.

    Raises:
      DataError: another or a damaged archive, missing files, foreign objects in a pickle.
    """
    path = expand(path)
    files = _read_folder(path) if os.path.isdir(path) else _read_archive(path)
    layout = _find_layout(set(files), path)
    names = _class_names(layout, files, path)
    splits = {
        split: _join_files([_batch(layout, files[name], name, names, path) for name in members], split)
        for split, members in (("train", layout.train), ("test", layout.test))
    }
    sizes = {split: len(source) for split, source in splits.items()}

    def opened(expression: str) -> ArraySource:
        parts = parse_split(expression, sizes, path)
        return join([(splits[split], start, stop) for split, start, stop in parts], f"{layout.name} {expression}")

    return Dataset(layout.name, names, sizes, opened)


def _read_folder(path: str) -> dict[str, bytes]:
    files = {}
    for name in _KNOWN:
        place = os.path.join(path, name)
        if os.path.isfile(place):
            with open(place, "rb") as file:
                files[name] = file.read()
    return files


def _read_archive(path: str) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if name in _KNOWN and member.isfile() and member.size <= _LARGEST_FILE:
                    content = archive.extractfile(member)
                    assert content is not None  # it is a regular file
                    files[name] = content.read()
            while archive.fileobj and archive.fileobj.read(2**20):
                pass  # the compression's checksum is at its very end, behind that of the archive
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(f"{path} is a damaged or incomplete archive ({error}): download it again") from None
    return files


def _find_layout(present: set[str], path: str) -> Layout:
    layout = max(LAYOUTS, key=lambda layout: len(present & set(layout.files)))
    missing = [name for name in layout.files if name not in present]
    if layout.files == tuple(missing):
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise DataError(
            f"{path} is none of the archives that are read as they are ({known}): unpack an archive of an image folder "
            "and give the folder"
        )
    if missing:
        raise DataError(f"{path} looks like {layout.name} but lacks {', '.join(missing)}: download it again")
    return layout


def _class_names(layout: Layout, files: dict[str, bytes], path: str) -> tuple[str, ...]:
    content = files[layout.names]
    if not layout.names_key:
        try:
            return tuple(line.strip() for line in content.decode().splitlines() if line.strip())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {layout.names} is no text ({error}): download it again") from None
    names = _unpickle(content, f"{path}: {layout.names}").get(layout.names_key)
    if not _are_texts(names) or not names:
        raise DataError(f"{path}: {layout.names} lacks {layout.names_key!r}: download it again")
    return tuple(_text(name) for name in names)


def _batch(layout: Layout, content: bytes, name: str, names: tuple[str, ...], path: str) -> ArraySource:
    where = f"{path}: {name}"
    if layout.label_key:
        batch = _unpickle(content, where)
        pixels, labels, files = (_plain(batch.get(key)) for key in ("data", layout.label_key, "filenames"))
        if not isinstance(pixels, np.ndarray) or labels is None or pixels.dtype != np.uint8:
            raise DataError(f"{where} lacks 'data' (uint8) or {layout.label_key!r}: download it again")
        if isinstance(labels, list) and not all(isinstance(label, int) for label in labels):
            raise DataError(f"{where}: {layout.label_key!r} holds other things than numbers: download it again")
        ids = [_text(file) for file in files] if _are_texts(files) else []
    else:
        record = layout.label_bytes + _PIXELS
        if not content or len(content) % record:
            raise DataError(
                f"{where} has {len(content)} bytes, no multiple of {record}: it is cut off, download it again"
            )
        table = np.frombuffer(content, np.uint8).reshape(-1, record)
        pixels, labels, ids = table[:, layout.label_bytes :], table[:, layout.label_bytes - 1], []
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS or len(pixels) != len(labels):
        raise DataError(f"{where} holds pixels {list(pixels.shape)} for {len(labels)} labels: download it again")
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    checked = check_labels(np.asarray(labels), len(names), where)
    return ArraySource(f"{layout.name}/{name}", images, checked, names, ids if len(ids) == len(images) else None)


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, _Array) else value


def _join_files(sources: list[ArraySource], split: str) -> ArraySource:
    return join([(source, 0, len(source)) for source in sources], split)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str | bytes) for value in values)


class _Named:
    """Stands for what a pickle names: it can be called, where that means something, and takes no state."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it would change what it names")


class _Dtype:
    """Stands for a NumPy type: whole numbers, in the byte order that a pickle sets afterwards."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = _text(code)
        if code not in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"):
            raise pickle.UnpicklingError(f"an array of type {code[:20]!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1]) if isinstance(state, tuple) and len(state) > 1 else ""
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a type of no byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a NumPy array, whose bytes a pickle sets afterwards."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array of an unknown form")
        _, shape, dtype, fortran, data = state
        self.values = _array(data, dtype, shape, "F" if fortran is True else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Stands for `numpy._core.numeric._frombuffer`, how newer protocols write an array."""
    array = _Array()
    array.values = _array(data, dtype, shape, _text(order))
    return array


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """An array of bytes that are there: nothing that a pickle says of them is believed unchecked."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array of no bytes")
    numbers = isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape)
    if not numbers or math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError("an array of another size than its bytes")
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes of no text")
    return text.encode("latin1")


def _refused(*_: Any) -> Any:
    raise pickle.UnpicklingError("an array that is made in another way than NumPy writes it")


_KNOWN_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _refused,  # named, and never called
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Builds strings, numbers, lists, dicts and stand-ins for arrays; everything else in a pickle is refused unbuilt.

    NumPy's own constructors are not handed out: an array of objects over bytes of a file's choice would crash Python.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN_NAMES:
            raise pickle.UnpicklingError(f"it would build {module}.{name}")
        return _Named(_KNOWN_NAMES[module, name])


def _unpickle(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise DataError(f"{where} is not a CIFAR pickle ({error}): download it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a CIFAR pickle (it holds a {type(value).__name__}): download it again")
    return {_text(key): item for key, item in value.items() if isinstance(key, str | bytes)}
