"""Preprocessing on the host: squares for training; for evaluation crop and resize as the original does.

NumPy and Pillow only, so that worker processes start quickly. The rules of evaluation are those of the original
EfficientNet code (`preprocessing.py` in tensorflow/tpu, models/official/efficientnet), to the last bit.
"""

import os

import numpy as np
from PIL import Image

from effnet_jax.choices import CROPS
from effnet_jax.data.decode import decode_image
from effnet_jax.data.resize import resize_bicubic, resize_bilinear
from effnet_jax.errors import ConfigError, nearest


def training_square(
    source: bytes | str | os.PathLike | np.ndarray, size: int, *, name: str | None = None
) -> tuple[np.ndarray, float]:
    """Squeezes a whole photograph into a square for training.

    The device's affine resampling undoes the squeeze, so that no part of the photograph is lost and every example
    has one shape. Averaging over the covered pixels (Pillow's bicubic), so that shrinking does not alias. A large JPEG
    is decoded smaller, with at least twice the square's side: docs/images.md has what that and the filter cost.

    Args:
      source: an image file's bytes or path, or a decoded image [h, w, 3].
      size: side of the square in pixels.
      name: what error messages call the image.

    Returns:
      uint8 [size, size, 3], and the photograph's width / height.

    Raises:
      DataError: the image cannot be decoded.
    """
    image = source if isinstance(source, np.ndarray) else decode_image(source, name=name, min_side=2 * size)
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image, 1.0
    square = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(square), width / height


def crop_window(height: int, width: int, resolution: int, crop: str) -> tuple[int, int, int]:
    """The centre square that evaluation looks at.

    Args:
      height: the image's height.
      width: the image's width.
      resolution: the model's resolution.
      crop: `"pad32"` (a padding of 32 at every resolution: what the published accuracies were measured with),
        `"frac"` (a padding of an eighth of the square, the original code since November 2021; equal at 224), or
        `"none"` (the largest centre square).

    Returns:
      top, left and side of the square, in pixels.

    Raises:
      ConfigError: an unknown crop rule.
    """
    if crop == "pad32":
        padding = 32
    elif crop == "frac":
        padding = round(resolution * (1 / 0.875 - 1))
    elif crop == "none":
        padding = 0
    else:
        raise ConfigError(f"unknown crop rule {crop!r}: {nearest(crop, CROPS)}")
    fraction = np.float32(resolution / (resolution + padding))
    side = max(1, int(fraction * np.float32(min(height, width))))
    return (height - side + 1) // 2, (width - side + 1) // 2, side


def evaluation_image(image: np.ndarray, resolution: int, crop: str, *, resize: str = "bicubic") -> np.ndarray:
    """Crops and resizes one decoded image as the original evaluation does.

    Equal to the original on the same pixels. From a JPEG file there is one difference left: the original decodes the
    crop's window alone, and where chroma is subsampled and the window's right edge is even, libjpeg then computes
    the window's last column (only) from fewer neighbours, up to about 7 levels off.

    Args:
      image: uint8 [h, w, 3].
      resolution: side of the result.
      crop: see `crop_window`.
      resize: `"bicubic"` or `"bilinear"`, both by TensorFlow 1's rules.

    Returns:
      float32 [resolution, resolution, 3], nominally 0..255; bicubic overshoots at edges and is not clipped.
    """
    top, left, side = crop_window(image.shape[0], image.shape[1], resolution, crop)
    square = image[top : top + side, left : left + side]
    return (resize_bicubic if resize == "bicubic" else resize_bilinear)(square, resolution, resolution)
