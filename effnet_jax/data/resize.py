"""TensorFlow 1's image resizing in NumPy, equal to the last bit.

The rules are those of `resize_bicubic_op.cc` and `resize_bilinear_op.cc` with align_corners and half_pixel_centers
False: no half-pixel shift, no antialiasing, a table of 1024 fractions for the cubic weights, float32 sums in the order
of the taps. No later TensorFlow function does the same.
"""

import functools

import numpy as np
from PIL import Image

_STRIP = 2**16  # float32 numbers of a strip of the result; from 2**15 to 2**18 were tried, for sides of 32 to 2,600


@functools.cache
def _cubic_table() -> tuple[np.ndarray, np.ndarray]:
    """Weights of the near and far taps at 1025 fractions, A = -0.75, as TensorFlow 1 tabulates them."""
    a = -0.75
    x = np.arange(1025) / 1024
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    y = x + 1
    far = ((a * y - 5 * a) * y + 8 * a) * y - 4 * a
    return near.astype(np.float32), far.astype(np.float32)


def _locations(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """For each output position the input position: its floor and the float32 rest. No half-pixel shift."""
    scale = np.float32(size_in) / np.float32(size_out)
    location = np.arange(size_out, dtype=np.float32) * scale
    base = np.floor(location)
    return base.astype(np.int64), location - base


@functools.lru_cache(maxsize=256)
def bicubic_taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The four taps of TF1's bicubic resize along one axis.

    Args:
      size_in: length of the axis before.
      size_out: length of the axis after.

    Returns:
      indices int64 [4, size_out] (clamped to the axis) and weights float32 [4, size_out].
    """
    near, far = _cubic_table()
    base, rest = _locations(size_in, size_out)
    step = np.rint(rest * np.float32(1024)).astype(np.int64)
    indices = np.clip(base + np.arange(-1, 3)[:, None], 0, size_in - 1)
    weights = np.stack([far[step], near[step], near[1024 - step], far[1024 - step]])
    return indices, weights


def _weighted_rows(image: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums rows [h, n] by taps, in float32 and in the order of the taps: [out, n]."""
    total = np.take(image, indices[0], axis=0).astype(np.float32, copy=False)
    total *= weights[0][:, None]
    for index, weight in zip(indices[1:], weights[1:], strict=True):
        product = np.take(image, index, axis=0).astype(np.float32, copy=False)
        product *= weight[:, None]
        total += product
    return total


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes by TensorFlow 1's `resize_bicubic` (align_corners and half_pixel_centers False, no antialiasing).

    Of large and of thin images what no tap looks at is left out first, and rows of the result are made a few at a
    time: they would take gigabytes as floats, and what lies between the two axes stays in the processor's cache.

    Args:
      image: uint8 or float32 [h, w, c].
      height: of the result.
      width: of the result.

    Returns:
      float32 [height, width, c], equal to TensorFlow's to the last bit.
    """
    taps = [bicubic_taps(size, wanted) for size, wanted in zip(image.shape[:2], (height, width), strict=True)]
    for axis, (indices, weights) in enumerate(taps):
        if 2 * indices.size <= image.shape[axis]:  # copying costs more than it saves where most are needed
            image = image[indices.ravel()] if axis == 0 else image.take(indices.ravel(), axis)  # copies no crop whole
            taps[axis] = np.arange(indices.size).reshape(indices.shape), weights
    (down, down_weights), (across, across_weights) = taps
    before, channels = image.shape[1:]
    rows, result = image.reshape(len(image), -1), np.empty((height, width, channels), np.float32)
    step = max(1, _STRIP // (max(before, width) * channels))
    for top in range(0, height, step):
        strip = slice(top, top + step)
        tall = _weighted_rows(rows, down[:, strip], down_weights[:, strip])  # [step, w * c]
        turned = tall.reshape(-1, before, channels).transpose(1, 0, 2)  # [w, step, c]
        wide = _weighted_rows(np.ascontiguousarray(turned).reshape(before, -1), across, across_weights)
        result[strip] = wide.reshape(width, -1, channels).transpose(1, 0, 2)  # from [width, step * c]
    return result


def resize_antialiased(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes by Pillow's bicubic, whose taps grow with the scale, so that shrinking does not alias.

    Args:
      image: uint8 [h, w, 3].
      height: of the result.
      width: of the result.

    Returns:
      float32 [height, width, 3], whole numbers from 0 to 255.
    """
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(resized, np.float32)


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes by TensorFlow 1's `resize_bilinear` (align_corners and half_pixel_centers False, no antialiasing).

    Args:
      image: uint8 or float32 [h, w, c].
      height: of the result.
      width: of the result.

    Returns:
      float32 [height, width, c], equal to TensorFlow's to the last bit.
    """
    pixels = image.astype(np.float32)
    top, down = _locations(pixels.shape[0], height)
    left, right = _locations(pixels.shape[1], width)
    # TensorFlow goes along x first, then along y; float32 sums depend on it.
    columns = _between(pixels, left, right[:, None], axis=1)
    return _between(columns, top, down[:, None, None], axis=0)


def _between(pixels: np.ndarray, low: np.ndarray, fraction: np.ndarray, axis: int) -> np.ndarray:
    first = np.take(pixels, low, axis=axis)
    second = np.take(pixels, np.minimum(low + 1, pixels.shape[axis] - 1), axis=axis)
    return first + (second - first) * fraction
