"""Small images of one shape, decoded once and held in memory."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from effnet_jax.data.sources.base import ArraySource, EncodedSource, Source, check_labels
from effnet_jax.errors import DataError

MEMORY_LIMIT = 4 * 2**30  # bytes of decoded small images; a larger set is decoded as it is read
_CHUNK = 1000


def in_memory(source: EncodedSource) -> Source:
    """Decodes a set of small images into one array, where there is room for it.

    Args:
      source: of any images.

    Returns:
      The images in memory; the source itself where its images are photographs, or too many.

    Raises:
      DataError: an image that cannot be decoded or is of another shape, where those are not skipped.
    """
    shape, count = source.fixed_shape, len(source)
    if shape is None or count * math.prod(shape) > MEMORY_LIMIT:
        return source
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int64)
    ids = [""] * count
    bad: dict[int, str] = {}

    def fill(start: int) -> None:
        positions = np.arange(start, min(start + _CHUNK, count))
        for index, read in zip(positions.tolist(), source.records.read_many(positions), strict=True):
            ids[index], labels[index] = source.example_id(index), 0
            try:
                if isinstance(read, DataError):
                    raise read
                data, labels[index], ids[index] = read
                images[index] = source.decode(data, f"{source.name}: {ids[index]}")
            except DataError as error:
                if source.on_bad_image != "skip":
                    raise
                bad[index] = str(error)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # the decoder leaves Python's lock
        list(pool.map(fill, range(0, count, _CHUNK)))
    left_out = tuple({"id": ids[index], "error": error} for index, error in sorted(bad.items()))
    if bad:  # for good: the rest is an array without holes
        if len(bad) == count:
            raise DataError(f"{source.name}: no image can be decoded, the first because: {bad[0]}")
        kept = np.array([index for index in range(count) if index not in bad], np.int64)
        images, labels, ids = images[kept], labels[kept], [ids[index] for index in kept]
    checked = check_labels(labels, len(source.class_names), source.name)
    return ArraySource(source.name, images, checked, source.class_names, ids, left_out=left_out)
