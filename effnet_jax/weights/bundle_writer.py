"""Writes TensorFlow checkpoints without TensorFlow.

The files are those of the formats that `effnet_jax.weights.tensor_bundle` and `sorted_table` describe.
"""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import google_crc32c
import numpy as np

from effnet_jax.weights.sorted_table import FOOTER_SIZE, MAGIC, mask_crc, write_varint
from effnet_jax.weights.tensor_bundle import data_path, index_path

_TYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "bfloat16": 14, "float16": 19}
_BLOCK_SIZE = 4096
_RESTART_INTERVAL = 16


def write_bundle(
    prefix: Path,
    tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
    *,
    shards: int = 1,
    big_endian: bool = False,
) -> None:
    """Writes `<prefix>.index` and `<prefix>.data-…`.

    Args:
      prefix: the common path of the files.
      tensors: name and array of each, in any order; they are taken one at a time.
      shards: number of data files; the tensors go to them in turn.
      big_endian: of the numbers in the data files.
    """
    entries = {b"": _field(1, shards) + (_field(2, 1) if big_endian else b"") + _field(3, _field(1, 1))}
    files = [data_path(prefix, shard, shards).open("wb") for shard in range(shards)]
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    for number, (name, array) in enumerate(pairs):
        shard = number % shards
        dtype = array.dtype.newbyteorder(">" if big_endian else "<")
        raw = np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8)
        shape = b"".join(_field(2, _field(1, size)) for size in array.shape)
        entries[name.encode()] = (
            _field(1, _TYPES[array.dtype.name])
            + _field(2, shape)
            + (_field(3, shard) if shard else b"")
            + (_field(4, files[shard].tell()) if files[shard].tell() else b"")
            + _field(5, raw.nbytes)
            + write_varint(6 << 3 | 5)
            + struct.pack("<I", mask_crc(google_crc32c.value(raw)))  # type: ignore[arg-type]
        )
        files[shard].write(raw.data)
    for file in files:
        file.close()
    index_path(prefix).write_bytes(write_table(entries))


def write_table(entries: Mapping[bytes, bytes]) -> bytes:
    """Returns a sorted table."""
    table = bytearray()

    def append(block: bytes) -> bytes:
        """Appends a block; returns its position as the index has it."""
        handle = write_varint(len(table)) + write_varint(len(block))
        stored = block + b"\0"  # not compressed
        table.extend(stored + struct.pack("<I", mask_crc(google_crc32c.value(stored))))
        return handle

    index, pending = {}, {}
    names = sorted(entries)
    for name in names:
        pending[name] = entries[name]
        if sum(map(len, pending)) + sum(map(len, pending.values())) > _BLOCK_SIZE or name == names[-1]:
            index[name] = append(_block(pending))
            pending = {}
    footer = append(_block({})) + append(_block(index))
    return bytes(table) + footer.ljust(FOOTER_SIZE - len(MAGIC), b"\0") + MAGIC


def _block(entries: Mapping[bytes, bytes]) -> bytes:
    """Returns the entries with their shared prefixes left out, and the restart points."""
    block, restarts, previous = bytearray(), [0], b""
    for number, (key, value) in enumerate(entries.items()):
        shared = 0
        if number % _RESTART_INTERVAL:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        elif number:
            restarts.append(len(block))
        block += (
            write_varint(shared) + write_varint(len(key) - shared) + write_varint(len(value)) + key[shared:] + value
        )
        previous = key
    return bytes(block) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _field(number: int, value: int | bytes) -> bytes:
    """Returns a field of a protocol buffer."""
    if isinstance(value, int):
        return write_varint(number << 3) + write_varint(value)
    return write_varint(number << 3 | 2) + write_varint(len(value)) + value
