"""From positions in a source to the arrays of one batch: gathering, decoding, squares, and what is kept of them."""

from typing import Any

import numpy as np

from effnet_jax.data.preprocess import evaluation_image, resize_bicubic, training_square
from effnet_jax.data.sources.base import ArraySource, Source
from effnet_jax.errors import DataError

Bad = list[tuple[str, str]]  # id and error of images that were skipped


def training_batch(source: Source, indices: np.ndarray, size: int, *, cached: bool) -> dict[str, Any]:
    """Makes the arrays of one training batch.

    Args:
      source: where the images are.
      indices: positions in the source, [B].
      size: side of the squares of photographs.
      cached: whether decoded photographs are kept in `source.squares[size]`.

    Returns:
      `image`, `aspect`, `label`, `index` as `loader.train_batches` describes them, and `bad`: what was skipped.

    Raises:
      DataError: an image that cannot be decoded, where those are not skipped, or none that can.
    """
    if isinstance(source, ArraySource) and source.fixed_shape is not None:
        return {
            "image": source.images[indices],
            "aspect": np.ones(len(indices), np.float32),
            "label": source.labels[indices],
            "index": indices.astype(np.int32),
            "bad": [],
        }
    image = np.empty((len(indices), size, size, 3), np.uint8)
    aspect = np.empty(len(indices), np.float32)
    label, index = np.empty(len(indices), np.int32), np.empty(len(indices), np.int32)
    bad: Bad = []
    for row, position in enumerate(indices):
        image[row], aspect[row], label[row], index[row] = _square_or_next(source, int(position), size, cached, bad)
    return {"image": image, "aspect": aspect, "label": label, "index": index, "bad": bad}


def _square_or_next(
    source: Source, position: int, size: int, cached: bool, bad: Bad
) -> tuple[np.ndarray, float, int, int]:
    """The square of one example, or where it cannot be decoded and may be skipped, of the next that can."""
    for index in (*range(position, len(source)), *range(position)):
        try:
            return (*_square(source, index, size, cached), index)
        except DataError as error:
            if source.on_bad_image != "skip":
                raise
            bad.append((source.example_id(index), str(error)))
    raise DataError(f"{source.name}: no image can be decoded, the first because: {bad[0][1]}")


def _square(source: Source, index: int, size: int, cached: bool) -> tuple[np.ndarray, float, int]:
    kept = source.squares.get(size, {}) if cached else {}
    if index in kept:
        return kept[index]
    if isinstance(source, ArraySource):
        square, aspect = training_square(source.images[index], size)
        label = int(source.labels[index])
    else:
        data, label, name = source.encoded(index)
        square, aspect = training_square(data, size, name=name)
    if cached:
        kept[index] = (square, aspect, label)
    return square, aspect, label


def evaluation_batch(source: Source, positions: np.ndarray, resolution: int | None, crop: str | None) -> dict[str, Any]:
    """Makes the arrays of one evaluation batch.

    Args:
      source: where the images are.
      positions: in the source, [B]; -1 for padding.
      resolution: side of the result; None gives images of one small shape as they are.
      crop: the crop rule; None resizes the whole image.

    Returns:
      `image`, `label`, `index`, `mask` as `loader.eval_batches` describes them, and `bad`: what was skipped.

    Raises:
      DataError: an image that cannot be decoded, where those are not skipped.
    """
    bad: Bad = []
    mask = (positions >= 0).astype(np.float32)
    label = np.zeros(len(positions), np.int32)
    if resolution is None:
        assert source.fixed_shape is not None
        image = np.zeros((len(positions), *source.fixed_shape), np.uint8)
    else:
        image = np.zeros((len(positions), resolution, resolution, 3), np.float32)
    for row, position in enumerate(positions):
        if position < 0:
            continue
        try:
            example = source[int(position)]
        except DataError as error:
            if source.on_bad_image != "skip":
                raise
            bad.append((source.example_id(int(position)), str(error)))
            mask[row] = 0
            continue
        label[row] = example["label"]
        if resolution is None:
            image[row] = example["image"]
        elif crop is None:
            image[row] = resize_bicubic(example["image"], resolution, resolution)
        else:
            image[row] = evaluation_image(example["image"], resolution, crop)
    return {"image": image, "label": label, "index": positions.astype(np.int32), "mask": mask, "bad": bad}
