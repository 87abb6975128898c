"""Images that are in a set more than once: equal ones by size and hash within some time, similar ones by looks."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from PIL import Image

from effnet_jax.data.decoders import cores
from effnet_jax.data.sources.base import ArraySource, Read, Source
from effnet_jax.data.sources.table import Files
from effnet_jax.errors import DataError

SECONDS = 20.0  # for the search of a pair of splits
_SHOWN = 10
_CHUNK = 256
_BITS = 3  # of 64 in which the looks of similar images differ at most
_SIDE = 8
_LEVELS = 16  # of 255 in which the colours of one of 8 × 8 fields differ at most, for the same image with two labels


def find_in_two_splits(sources: Mapping[str, Source], kind: str = "equal", seconds: float = SECONDS) -> list[str]:
    """Compares the splits for evaluation with the training split.

    Args:
      sources: by role.
      kind: `"equal"`: the same bytes; `"similar"`: also what was compressed anew or resized, which decodes every image
        and takes as long as that does; `"off"`.
      seconds: for each pair of splits, for equal ones.

    Returns:
      Warnings for the user: what was found, and what was not searched.
    """
    warnings = []
    for role, source in sources.items():
        if role == "train" or kind == "off":
            continue
        train = sources["train"]
        if kind == "similar":
            pairs, unsearched = find_similar(train, source), ""
        else:
            pairs, unsearched = find_equal(train, source, seconds)
        if pairs:
            listed = "; ".join(f"{first} = {second}" for first, second in pairs[:_SHOWN])
            more = f"; and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
            warnings.append(
                f"{len(pairs)} image(s) of {source.name} are in {train.name} too, so its accuracy flatters: "
                f"{listed}{more}. Remove one of each pair"
            )
        if unsearched:
            warnings.append(f"{source.name} was not searched for images of {train.name} in full: {unsearched}")
    return warnings


def find_equal(first: Source, second: Source, seconds: float = SECONDS) -> tuple[list[tuple[str, str]], str]:
    """Finds images of the same content: arrays by their pixels, files by their bytes (those of equal size are read).

    Args:
      first: a source.
      second: another.
      seconds: after which it stops.

    Returns:
      Pairs of ids, in the order of `second`; and what was not searched, `""` where all was.
    """
    deadline = time.monotonic() + seconds
    if isinstance(first, ArraySource) and isinstance(second, ArraySource):
        if first.images.shape[1:] != second.images.shape[1:]:
            return [], ""
        return _pairs(first, second, _pixels(first), _pixels(second)), ""
    if isinstance(first, ArraySource) or isinstance(second, ArraySource):
        return [], "one is an array, the other files"
    rows, others = np.arange(len(first)), np.arange(len(second))
    try:
        if isinstance(first.records, Files) and isinstance(second.records, Files):
            sizes, other_sizes = _sizes(first.records, deadline), _sizes(second.records, deadline)
            rows, others = rows[np.isin(sizes, other_sizes)], others[np.isin(other_sizes, sizes)]
        hashes = list(_bytes(second, others, deadline))
        return _pairs(first, second, _bytes(first, rows, deadline), hashes), ""
    except TimeoutError:
        return [], f"it would take more than {seconds:.0f} s (data.duplicates='off' does without)"


def _pairs(
    first: Source, second: Source, hashes: Iterable[tuple[int, bytes]], others: Iterable[tuple[int, bytes]]
) -> list[tuple[str, str]]:
    known = {digest: index for index, digest in hashes}
    return [(first.example_id(known[d]), second.example_id(index)) for index, d in others if d in known]


def _pixels(source: ArraySource) -> list[tuple[int, bytes]]:
    return [
        (index, hashlib.blake2b(image.tobytes(), digest_size=16).digest()) for index, image in enumerate(source.images)
    ]


def _sizes(files: Files, deadline: float) -> np.ndarray:
    sizes = np.empty(len(files), np.int64)
    for start in range(0, len(files), _CHUNK):
        positions = np.arange(start, min(start + _CHUNK, len(files)))
        for index, path in zip(positions.tolist(), files.paths(positions), strict=True):
            try:
                sizes[index] = os.stat(path).st_size
            except OSError:  # whoever reads it is told
                sizes[index] = -1
        _check(deadline)
    return sizes


def _bytes(source: Source, rows: np.ndarray, deadline: float) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        for index, read in zip(chunk.tolist(), source.read_many(chunk), strict=True):
            if not isinstance(read, DataError):
                yield index, hashlib.blake2b(read[0], digest_size=16).digest()
        _check(deadline)


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError


def find_similar(first: Source, second: Source) -> list[tuple[str, str]]:
    """Finds images that look alike, as the same photograph does after it was compressed anew or resized.

    An image is told by 64 comparisons of neighbours in a grey picture of 9 × 8 pixels (dHash, after Krawetz 2013);
    images whose looks differ in 3 of them at most are taken for the same.

    Args:
      first: a source.
      second: another.

    Returns:
      Pairs of ids, in the order of `second`.
    """
    looks, others = _looks(first), _looks(second)
    # Of four parts of 16 bits one at least is the same where 3 bits differ.
    parts = [(looks >> np.uint64(16 * part)).astype(np.uint16) for part in range(4)]
    tables = [_by_value(part) for part in parts]
    pairs = []
    for index, look in enumerate(others.tolist()):
        for part, (order, starts) in enumerate(tables):
            value = (look >> (16 * part)) & 0xFFFF
            near = order[starts[value] : starts[value + 1]]
            differ = np.bitwise_count(looks[near] ^ np.uint64(look))
            if len(near) and differ.min() <= _BITS:
                pairs.append((first.example_id(int(near[differ.argmin()])), second.example_id(index)))
                break
    return pairs


def _by_value(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(part, kind="stable")
    return order, np.searchsorted(part[order], np.arange(2**16 + 1))


def _looks(source: Source) -> np.ndarray:
    """64 bits of each image, uint64 [N]; of one that cannot be decoded random ones, which are like no other's."""
    return np.array([look for look, _ in _sketches(source, math.inf)], np.uint64)


def _sketches(source: Source, deadline: float) -> list[tuple[int, np.ndarray]]:
    """Of each image the 64 bits of its look, and its colours in 8 × 8 fields, uint8 [8, 8, 3].

    Of one that cannot be decoded the look is random, which is like no other's.
    """
    chunks = [np.arange(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]

    def of_chunk(rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        return [_sketch(source, read, deadline) for read in source.read_many(rows)]

    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        return [sketch for sketches in pool.map(of_chunk, chunks) for sketch in sketches]


def _sketch(source: Source, read: Read, deadline: float) -> tuple[int, np.ndarray]:
    _check(deadline)
    try:
        if isinstance(read, DataError):
            raise read
        image = Image.fromarray(source.decode(read[0], read[2]))
    except DataError:
        return _like_no_other(), np.zeros((_SIDE, _SIDE, 3), np.uint8)
    fields = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    grey = image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.int16)
    look = int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes(), "big")
    return look or _like_no_other(), fields  # an image of one colour looks like any other


def _like_no_other() -> int:
    return int.from_bytes(os.urandom(8), "big")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an image is: its split, its position there, and its label."""

    split: str
    index: int
    label: int


def equal_groups(sources: Mapping[str, Source], seconds: float = SECONDS) -> list[list[Place]]:
    """Finds the images that are in some splits more than once with the same content, within a split too.

    Args:
      sources: by split.
      seconds: after which it gives up.

    Returns:
      Groups of two or more, in the order of the splits and positions.

    Raises:
      TimeoutError: it would take longer.
    """
    deadline = time.monotonic() + seconds
    sizes = {
        split: _sizes(source.records, deadline)
        for split, source in sources.items()
        if not isinstance(source, ArraySource) and isinstance(source.records, Files)
    }
    known, counts = np.unique(np.concatenate([*sizes.values(), np.zeros(0, np.int64)]), return_counts=True)
    groups: dict[bytes, list[Place]] = collections.defaultdict(list)
    for split, source in sources.items():
        rows = np.arange(len(source))
        if split in sizes:  # files of a size of their own are like no other
            rows = rows[np.isin(sizes[split], known[counts > 1])]
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            for index, read in zip(chunk.tolist(), source.read_many(chunk), strict=True):
                if not isinstance(read, DataError):
                    data = read[0].tobytes() if isinstance(source, ArraySource) else read[0]
                    digest = hashlib.blake2b(data, digest_size=16).digest()
                    groups[digest].append(Place(split, index, read[1]))
            _check(deadline)
    return [group for group in groups.values() if len(group) > 1]


def similar_pairs(sources: Mapping[str, Source], seconds: float = SECONDS) -> list[tuple[Place, Place]]:
    """Finds images that look alike and have different labels, within a split too.

    Besides the looks of `find_similar` the colours of each of 8 × 8 fields have to be near: different things before the
    same wall have the same look more often than the same label.

    Args:
      sources: by split; every image of them is decoded.
      seconds: after which it gives up.

    Returns:
      Of each image the most similar one before it that has another label.

    Raises:
      TimeoutError: it would take longer.
    """
    deadline = time.monotonic() + seconds
    places = [
        Place(split, index, label)
        for split, source in sources.items()
        for index, label in enumerate(_labels(source, deadline).tolist())
    ]
    sketches = [sketch for source in sources.values() for sketch in _sketches(source, deadline)]
    looks = np.array([look for look, _ in sketches], np.uint64)
    fields = np.array([colours for _, colours in sketches], np.int16)
    labels = np.array([place.label for place in places])
    tables = [_by_value((looks >> np.uint64(16 * part)).astype(np.uint16)) for part in range(4)]
    pairs = []
    for index, look in enumerate(looks.tolist()):
        values = [(look >> (16 * part)) & 0xFFFF for part in range(4)]
        parts = zip(tables, values, strict=True)
        near = np.concatenate([order[starts[value] : starts[value + 1]] for (order, starts), value in parts])
        near = near[(near < index) & (labels[near] != labels[index]) & (labels[near] >= 0)]
        near = near[np.bitwise_count(looks[near] ^ np.uint64(look)) <= _BITS]
        apart = np.abs(fields[near] - fields[index]).max((1, 2, 3), initial=0)
        if labels[index] >= 0 and len(near) and apart.min() <= _LEVELS:
            pairs.append((places[int(near[apart.argmin()])], places[index]))
    return pairs


def _labels(source: Source, deadline: float) -> np.ndarray:
    """The label of each image, int64 [N]; -1 of one that cannot be read."""
    if source.labels is not None:
        return np.asarray(source.labels, np.int64)
    labels = np.full(len(source), -1, np.int64)
    for start in range(0, len(source), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(source)))
        labels[rows] = [-1 if isinstance(read, DataError) else read[1] for read in source.read_many(rows)]
        _check(deadline)
    return labels
