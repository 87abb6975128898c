"""Reader of TensorFlow's checkpoints (the "V2" tensor bundle), without TensorFlow.

Format: tensorflow/core/util/tensor_bundle and tensorflow/core/protobuf/tensor_bundle.proto. `<prefix>.index` is a
sorted table (`sorted_table.py`): the key "" holds the header, every other key is a tensor's name with its type, shape,
shard, position, size and masked CRC-32C. `<prefix>.data-00000-of-00001` … hold the raw bytes.

PyPI has tensorflow-checkpoint-reader (0.2.2), which is not used here: it never compares a checksum (and computes the
wrong kind of CRC), reads only the first block of an index, and needs protobuf before 3.19.
"""

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import ml_dtypes
import numpy as np

from effnet_jax.errors import CheckpointError
from effnet_jax.weights.checkpoint import Checkpoint, Entry
from effnet_jax.weights.sorted_table import TableError, mask_crc, read_table, read_varint

INDEX_ENDING = ".index"

# Numbers of tensorflow/core/framework/types.proto.
_DTYPES = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    14: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(np.uint16),
    19: np.dtype(np.float16),
    22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
}
_COPY_AGAIN = "copy the checkpoint's files again, all from the same place"


def data_path(prefix: Path, shard: int, shards: int) -> Path:
    """Returns the path of one shard of the data."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def index_path(prefix: Path) -> Path:
    """Returns the path of the index."""
    return prefix.with_name(prefix.name + INDEX_ENDING)


class _Place(NamedTuple):
    """Where a tensor's bytes are."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


class Index(NamedTuple):
    """What the index of a checkpoint says."""

    shards: int
    big_endian: bool
    places: dict[str, _Place]

    @property
    def entries(self) -> dict[str, Entry]:
        """Shape and type of each tensor."""
        return {
            name: Entry(place.shape, _DTYPES[place.dtype].name if place.dtype in _DTYPES else f"type {place.dtype}")
            for name, place in self.places.items()
        }


def read_index(path: Path) -> Index:
    """Reads the index of a checkpoint; its data files are not needed.

    Raises:
      CheckpointError: the file is missing or damaged.
    """
    try:
        table = read_table(path.read_bytes())
        shards, big_endian = _parse_header(table.pop(b"", None))
        return Index(shards, big_endian, {name.decode(): _parse_entry(value) for name, value in table.items()})
    except FileNotFoundError:
        raise CheckpointError(f"the checkpoint's index {path} is missing: {_COPY_AGAIN}") from None
    except ValueError as error:  # TableError, and names and numbers that are none
        raise CheckpointError(f"the checkpoint's index {path} is damaged: {error}; {_COPY_AGAIN}") from None


class TensorBundle(Checkpoint):
    """The tensors of one checkpoint.

    Args:
      prefix: the common path of its files, such as `model.ckpt` for `model.ckpt.index`.

    Raises:
      CheckpointError: a file is missing, of the wrong size, or the index is damaged.
    """

    def __init__(self, prefix: Path) -> None:
        super().__init__()
        self.source = prefix
        index = read_index(index_path(prefix))
        self._shards, self._big_endian, self._places = index
        self.entries = index.entries
        self.files = (index_path(prefix),)
        self._data: list[io.FileIO] = []
        try:
            self._open_data()
        except BaseException:
            self.close()
            raise

    def _open_data(self) -> None:
        """Opens the shards and checks that their tensors tile them: no gap, no overlap, nothing after the last."""
        spans: dict[int, list[tuple[int, int, str]]] = {shard: [] for shard in range(self._shards)}
        for name, place in self._places.items():
            if place.shard >= self._shards:
                raise CheckpointError(f"{self.source}: {name} is in shard {place.shard} of {self._shards}")
            if not place.sliced:
                spans[place.shard].append((place.offset, place.offset + place.size, name))
        whole = not any(place.sliced for place in self._places.values())
        for shard, parts in spans.items():
            path = data_path(self.source, shard, self._shards)
            try:
                self._data.append(self._resources.enter_context(path.open("rb", buffering=0)))
            except FileNotFoundError:
                count = f"{self._shards} data files" if self._shards > 1 else "one data file"
                raise CheckpointError(f"{path} is missing: the checkpoint has {count}; {_COPY_AGAIN}") from None
            size = os.fstat(self._data[shard].fileno()).st_size
            end = max((end for _, end, _ in parts), default=0)
            if size < end or (whole and size != end):
                state = "cut off" if size < end else "longer than its tensors"
                raise CheckpointError(f"{path} has {size} bytes instead of {end}, so it is {state}: {_COPY_AGAIN}")
            self.files = (*self.files, path)
            reached = 0
            for start, end, name in sorted(parts):
                if start < reached:
                    raise CheckpointError(f"{path}: {name} overlaps the tensor before it: {_COPY_AGAIN}")
                # Nothing in the index vouches for bytes between tensors: a writer that aligns them fills with zeros.
                gap = np.empty(max(0, start - reached), np.uint8)
                if whole and self._read_into(shard, reached, gap).any():
                    raise CheckpointError(f"{path}: bytes {reached} to {start} belong to no tensor: {_COPY_AGAIN}")
                reached = end

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor in this machine's byte order; its checksum is verified."""
        self._entry(name)
        place = self._places[name]
        dtype = _DTYPES.get(place.dtype)
        if dtype is None or place.sliced:
            what = "is partitioned into slices" if place.sliced else f"has TensorFlow's type {place.dtype}"
            raise CheckpointError(f"{self.source}: {name} {what}, which this reader does not read")
        count = math.prod(place.shape)
        if count * dtype.itemsize != place.size:
            raise CheckpointError(
                f"{self.source}: {name} of shape {place.shape} has {place.size} bytes instead of "
                f"{count * dtype.itemsize}: {_COPY_AGAIN}"
            )
        raw = self._read_bytes(name)
        array = raw.view(dtype.newbyteorder(">") if self._big_endian else dtype.newbyteorder("<"))
        return array.astype(dtype, copy=False).reshape(place.shape)

    def verify(self, name: str) -> None:
        """Checks the bytes of one tensor. Types that `read` does not know have checksums of another form: skipped."""
        place = self._places[name]
        if place.dtype in _DTYPES and not place.sliced:
            self._read_bytes(name)

    def _read_bytes(self, name: str) -> np.ndarray:
        """Returns a tensor's bytes, uint8 [size]: what is checked is what is returned, in one copy."""
        place = self._places[name]
        raw = self._read_into(place.shard, place.offset, np.empty(place.size, np.uint8))
        if len(raw) < place.size or mask_crc(google_crc32c.value(raw)) != place.crc:  # type: ignore[arg-type]
            path = data_path(self.source, place.shard, self._shards)
            raise CheckpointError(f"{path} is damaged: the checksum of {name} is wrong; {_COPY_AGAIN}")
        return raw

    def _read_into(self, shard: int, offset: int, buffer: np.ndarray) -> np.ndarray:
        """Fills a buffer of bytes from a shard; returns the part that was filled."""
        file = self._data[shard]
        file.seek(offset)
        view, done = buffer.data, 0
        while done < len(view) and (count := file.readinto(view[done:])):
            done += count
        return buffer[:done]


def _parse_header(value: bytes | None) -> tuple[int, bool]:
    """Returns the number of shards and whether numbers are big-endian (`BundleHeaderProto`)."""
    if value is None:
        raise TableError("it has no header")
    fields = dict(_parse_message(value))
    shards = fields.get(1, 0)
    if not isinstance(shards, int) or not 0 < shards <= 99999:
        raise TableError(f"it states {shards!r} data files")
    return shards, fields.get(2, 0) == 1


def _parse_entry(value: bytes) -> _Place:
    """Returns where a tensor is (`BundleEntryProto`)."""
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] = ()
    sliced = False
    for field, content in _parse_message(value):
        if field == 2 and isinstance(content, bytes):
            sizes = [dict(_parse_message(dim)) for _, dim in _parse_message(content) if isinstance(dim, bytes)]
            shape = tuple(int(size.get(1, 0)) for size in sizes)
        elif field == 7:
            sliced = True
        elif isinstance(content, int):
            numbers[field] = content
    return _Place(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], sliced)


def _parse_message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields field number and value of a protocol buffer: numbers as int, the rest as bytes."""
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            number, position = read_varint(data, position)
            yield field, number
            continue
        if kind == 2:
            length, position = read_varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise TableError(f"an entry has the unknown wire type {kind}")
        content = data[position : position + length]
        if len(content) != length:
            raise TableError("an entry is cut off")
        position += length
        yield field, content if kind == 2 else int.from_bytes(content, "little")
