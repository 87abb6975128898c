"""Preprocessing on the host: decode an image, then for evaluation crop and resize it as the original does.

NumPy, Pillow and simplejpeg only, so that worker processes start quickly. The rules are those of the original
EfficientNet code (`preprocessing.py` in tensorflow/tpu, models/official/efficientnet), to the last bit.
"""

import io
import os
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from effnet_jax.choices import CROPS
from effnet_jax.data.resize import resize_bicubic, resize_bilinear
from effnet_jax.errors import ConfigError, DataError, nearest

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB as RGB
BACKGROUND = 255  # transparent images are laid on white, as shops and viewers show them

_ORIENTATION_TAG = 0x0112
# EXIF orientation -> what brings the stored pixels the right way up.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


def decode_image(source: bytes | str | os.PathLike, *, name: str | None = None, min_side: int = 0) -> np.ndarray:
    """Decodes one image to RGB, the right way up.

    JPEG files give the pixels that TensorFlow's `decode_jpeg` gives (libjpeg-turbo with the fast integer DCT), where
    Pillow would differ by one level on average. Everything else is decoded by Pillow. The EXIF orientation is
    applied, which TensorFlow does not do. Grey is repeated over the channels; of 16 bits a channel the upper 8 are
    kept; transparent images are laid on white; of an animation the first frame is taken.

    Args:
      source: the bytes of an image file, or its path.
      name: what error messages call the image; the path by default.
      min_side: where positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as no side gets shorter
        than this. Much faster for large photographs that are made small anyway; 0 decodes every pixel.

    Returns:
      uint8 array [height, width, 3].

    Raises:
      DataError: there is no such file, or it is empty, truncated, damaged, no image, or larger than `MAX_PIXELS`.
    """
    if isinstance(source, bytes):
        name = name or "the image"
        data = source
    else:
        name = name or os.fspath(source)
        try:
            with open(source, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise DataError(f"{name}: there is no such file") from None
        except OSError as error:
            raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    if not data:
        raise DataError(f"{name} is an empty file: copy it again, or remove it")
    image = _decode_jpeg(data, name, min_side) if data[:2] == b"\xff\xd8" else None
    if image is None:
        image = _decode_with_pillow(data, name)
    return np.ascontiguousarray(image)


def _check_pixels(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{name} has {height * width:,} pixels ({width}x{height}), more than {MAX_PIXELS:,}: it may be a "
            "decompression bomb. Make it smaller, or remove it"
        )


def _decode_jpeg(data: bytes, name: str, min_side: int) -> np.ndarray | None:
    """Decodes a JPEG with TensorFlow's settings; None for CMYK, which is left to Pillow."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(height, width, name)
        if colorspace in ("CMYK", "YCCK"):
            return None
        options = {"colorspace": "rgb", "fastdct": True, "fastupsample": False}
        if min_side and min(height, width) >= 2 * min_side:
            options |= {"min_height": min_side, "min_width": min_side, "min_factor": 2.0}
        try:
            image = simplejpeg.decode_jpeg(data, **options)
        except ValueError as error:
            # Stray bytes between segments are common and harmless; every other complaint means lost pixels.
            if "extraneous bytes" not in str(error):
                raise
            image = simplejpeg.decode_jpeg(data, strict=False, **options)
    except ValueError as error:
        raise DataError(f"{name} is a damaged or truncated JPEG ({error}): copy it again, or remove it") from None
    if b"Exif\x00\x00" in data[:65536]:
        image = _UPRIGHT.get(_orientation(data), lambda x: x)(image)
    return image


def _orientation(data: bytes) -> int:
    try:
        return int(Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels, which are fine
        return 1


def _decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(image.height, image.width, name)
            image.load()
            return _UPRIGHT.get(int(image.getexif().get(_ORIENTATION_TAG, 1)), lambda x: x)(_to_rgb(image, name))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} may be a decompression bomb ({error}). Make it smaller, or remove it") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{name} is not an image that can be read (JPEG, PNG, WebP, …): replace or remove it") from None
    except Exception as error:  # Pillow's decoders raise whatever foreign bytes lead them to
        raise DataError(f"{name} is a damaged or truncated image ({error}): copy it again, or remove it") from None


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Converts any mode that Pillow opens to uint8 [height, width, 3]."""
    if image.mode == "F":
        raise DataError(f"{name} holds floating-point pixels, whose range is unknown: save it with 8 bits a channel")
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = (np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (BACKGROUND,) * 3 + (255,))
        image = Image.alpha_composite(canvas, rgba)
    return np.asarray(image.convert("RGB"))


def training_square(
    source: bytes | str | os.PathLike | np.ndarray, size: int, *, name: str | None = None
) -> tuple[np.ndarray, float]:
    """Squeezes a whole photograph into a square for training.

    The device's affine resampling undoes the squeeze, so that no part of the photograph is lost and every example
    has one shape. Averaging over the covered pixels (Pillow's bicubic), so that shrinking does not alias.

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
