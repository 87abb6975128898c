"""Reader of the sorted tables that TensorFlow keeps a checkpoint's index in. Pure Python.

Format: LevelDB's `doc/table_format.md`, as in tensorflow/core/lib/io/{table,format,block}.cc. A table is a sequence of
data blocks, a meta-index block, an index block and a footer of 48 bytes. A block's entries share prefixes with the
entry before; a block is followed by one byte that names its compression and a masked CRC-32C over both.

Every byte of the file is accounted for: the blocks and the footer must tile it, and the footer, which has no checksum,
must be exactly what a writer makes of the two positions that it holds.
"""

import struct
from collections.abc import Iterator

import google_crc32c

FOOTER_SIZE = 48
TRAILER_SIZE = 5  # compression type and checksum
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_PLAIN = 0
_MOST_NAMES = 2**24  # bytes of keys written out; those of the largest checkpoint have a megabyte


class TableError(ValueError):
    """Bytes that are no sorted table; the caller adds the file's name."""


def mask_crc(crc: int) -> int:
    """Returns a CRC-32C as LevelDB and TensorFlow store it: rotated by 15 bits, plus a constant."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns the little-endian base-128 number at `position`, and the position after it."""
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise TableError("a number runs over the end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def write_varint(value: int) -> bytes:
    """Returns `value` in the fewest base-128 bytes."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Returns all entries of a table, in order.

    Args:
      data: the whole file.

    Raises:
      TableError: a checksum, a position or the order of the keys is wrong.
    """
    if len(data) < FOOTER_SIZE:
        raise TableError(f"{len(data)} bytes are too few for an index")
    footer = data[-FOOTER_SIZE:]
    if footer[-8:] != MAGIC:
        raise TableError("the end of the file is not that of an index")
    numbers, position = [], 0
    for _ in range(4):
        number, position = read_varint(footer, position)
        numbers.append(number)
    if footer != b"".join(map(write_varint, numbers)).ljust(FOOTER_SIZE - 8, b"\0") + MAGIC:
        raise TableError("the footer is damaged")
    meta, index = (numbers[0], numbers[1]), (numbers[2], numbers[3])

    entries: dict[bytes, bytes] = {}
    handles = []
    room = _MOST_NAMES
    for last_key, value in _block_entries(_read_block(data, *index)):
        offset, position = read_varint(value, 0)
        size, position = read_varint(value, position)
        if position != len(value):
            raise TableError("the position of a block is damaged")
        handles.append((offset, size))
        for key, entry in _block_entries(_read_block(data, offset, size)):
            if entries and key <= next(reversed(entries)):
                raise TableError("the keys are out of order")
            entries[key] = entry
            room -= len(key)
            if room < 0:
                raise TableError("its names are longer than those of any checkpoint")
        if entries and next(reversed(entries)) > last_key:
            raise TableError("a block holds keys beyond its end")
    list(_block_entries(_read_block(data, *meta)))

    end = 0
    for offset, size in sorted([*handles, meta, index]):
        if offset != end:
            raise TableError(f"bytes {end} to {offset} belong to no block")
        end = offset + size + TRAILER_SIZE
    if end != len(data) - FOOTER_SIZE:
        raise TableError(f"bytes {end} to {len(data) - FOOTER_SIZE} belong to no block")
    return entries


def _read_block(data: bytes, offset: int, size: int) -> bytes:
    """Returns the contents of a block, its checksum verified and its compression undone."""
    end = offset + size
    if end + TRAILER_SIZE > len(data) - FOOTER_SIZE:
        raise TableError("a block lies beyond the end of the file")
    (stored,) = struct.unpack_from("<I", data, end + 1)
    if mask_crc(google_crc32c.value(data[offset : end + 1])) != stored:
        raise TableError(f"the checksum of the block at byte {offset} is wrong")
    block, compression = data[offset:end], data[end]
    if compression == _PLAIN:
        return block
    # TensorFlow's writer of checkpoints never compresses their index.
    raise TableError(f"the block at byte {offset} has the unknown compression {compression}")


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields key and value of each entry of a block."""
    if len(block) < 4:
        raise TableError("a block is too short")
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise TableError("a block is too short for its restart points")
    key, position, names = b"", 0, 0
    while position < end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        length, position = read_varint(block, position)
        if shared > len(key) or position + unshared + length > end:
            raise TableError("an entry runs over the end of its block")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        names += len(key)
        if names > _MOST_NAMES:
            raise TableError("its names are longer than those of any checkpoint")
        yield key, block[position : position + length]
        position += length
