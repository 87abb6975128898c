"""Decoding one image file of any kind to RGB, and what is said of files that cannot be.

Pillow, simplejpeg and NumPy only, so that worker processes start quickly. No file is believed: sizes are judged before
pixels are unpacked, and pixels that are lost are an error, never grey.
"""

import io
import os
import re
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFile

from effnet_jax.data import jpeg
from effnet_jax.errors import DataError

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB as RGB
BACKGROUND = 255  # transparent images are laid on white, as shops and viewers show them

# All that Pillow reads by itself. Left out are those that start another program (EPS, WMF), only name a format (MPEG,
# GRIB, …), or take any bytes for an image.
FORMATS = (
    *("PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG", "MPO", "PPM", "AVIF", "JPEG2000", "ICO", "CUR", "DIB", "ICNS"),
    *("QOI", "PSD", "DDS", "SGI", "SUN", "PCX", "IM", "MSP", "XBM", "XPM", "TGA"),
)

_ORIENTATION_TAG = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
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
_STRIP = 1 << 20  # pixels that are converted at a time where the way to RGB takes room of its own
_SUBFILE_TAG = 254  # TIFF: bit 0 says that the page is a smaller version of another
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def decode_image(source: bytes | str | os.PathLike, *, name: str | None = None, min_side: int = 0) -> np.ndarray:
    """Decodes one image to RGB, the right way up.

    JPEG files give the pixels that TensorFlow's `decode_jpeg` gives (libjpeg-turbo with the fast integer DCT), where
    Pillow would differ by one level on average. Everything else is decoded by Pillow. The EXIF orientation is
    applied, which TensorFlow does not do. Grey is repeated over the channels; of 16 bits a channel the upper 8 are
    kept; transparent images are laid on white; of an animation the first frame is taken. docs/images.md has a table
    of what is read.

    Args:
      source: the bytes of an image file, or its path.
      name: what error messages call the image; the path by default.
      min_side: where positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as no side gets shorter
        than this. Much faster for large photographs that are made small anyway; 0 decodes every pixel.

    Returns:
      uint8 array [height, width, 3].

    Raises:
      DataError: there is no such file, or it is empty, truncated, damaged, no image, of a kind whose range of values
        is unknown, or more than `MAX_PIXELS` would have to be decoded.
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
        except (OSError, ValueError) as error:  # a path out of a damaged table may hold a zero
            raise DataError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise DataError(f"{name} is an empty file: copy it again, or remove it")
    image = _decode_jpeg(data, name, min_side) if data[:2] == b"\xff\xd8" else _decode_with_pillow(data, name)
    return np.ascontiguousarray(image)


def range_note(data: bytes) -> str:
    """What a user should know of an image that is readable but nearly black or of one colour by its number type.

    Such are 10 or 12 bits of a camera in files of 16 bits, and masks or class numbers in 8 bits. An image of one value
    throughout is nothing to note. Costs about as much as decoding the image, a JPEG at an eighth of its size.

    Args:
      data: the bytes of an image file.

    Returns:
      A sentence without a subject's name that says what the values are and the cure, such as "its 16-bit values go up
      to 4,095 of 65,535, …"; empty where nothing is to be said, and for files that `decode_image` refuses.
    """
    try:
        deep = single = False
        if data[:2] == b"\xff\xd8":
            values = _decode_jpeg(data, "", 1)
        else:
            with _open(data, "") as image:
                deep = "16" in image.mode or image.mode == "I" or any(";16" in str(tile[3]) for tile in image.tile)
                image.load()
                single = image.mode.startswith("I")
                values = np.asarray(image if single else image.convert("RGB"))
                if deep and not single:  # of colours Pillow has kept the upper 8 bits: take the lower ones as set
                    values = values.astype(np.uint16) << 8 | 255
                    values[0, 0] = 0
        low, high = int(values.min()), int(values.max())
    except Exception:  # whatever is wrong with it, decoding it will say
        return ""
    bits, top = (16, 65_535) if deep else (8, 255)
    if low == high or high > top:
        return ""
    if high < (1 << 14 if deep else 1 << 4):
        factor = top // high if high < 4 else 1 << (bits - high.bit_length())
        cure = f"multiply them by {factor}" + (", or save 8 bits a channel" if deep else "")
        return f"its {bits}-bit values go up to {high:,} of {top:,}, so that it is nearly black: {cure}"
    if deep and high - low < 1 << 10:
        return (
            f"its 16-bit values lie between {low:,} and {high:,} of 65,535, so that it is nearly one colour: stretch "
            "them over the whole range, or save 8 bits a channel"
        )
    return ""


def _check_pixels(height: int, width: int, name: str, why: str = "") -> None:
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{name} has {height * width:,} pixels ({width}x{height}){why}, more than {MAX_PIXELS:,}: it may be a "
            "decompression bomb. Make it smaller, or remove it"
        )


def _decode_jpeg(data: bytes, name: str, min_side: int) -> np.ndarray:
    try:
        header = jpeg.read_jpeg(data, whole=False)
        factor = jpeg.reduction(header.height, header.width, min_side)
        if header.buffered:
            _check_pixels(header.height, header.width, name, " and is progressive, so that all are held in memory")
        else:
            why = f", even decoded at 1/{factor} of its size," if factor > 1 else ""
            _check_pixels(-(-header.height // factor), -(-header.width // factor), name, why)
        image = jpeg.decode_jpeg(data, header, factor)
    except jpeg.Damaged as error:
        raise DataError(f"{name} is a damaged or truncated JPEG ({error}): copy it again, or remove it") from None
    except jpeg.Unsupported as error:
        return _decode_with_pillow(data, name, shrink=factor, kind=f"a kind of JPEG that cannot be read ({error})")
    if image.shape[2] == 4:
        image = np.concatenate([_rgb(strip) for strip in _strips(Image.fromarray(image, "CMYK"))])
    return _UPRIGHT.get(_orientation(header.exif, header.xmp), lambda x: x)(image)


def _orientation(exif: bytes, xmp: bytes) -> int:
    """How a picture was held, as Pillow's `exif_transpose` has it: from EXIF, or from XMP where EXIF says nothing."""
    try:
        if exif:
            block = Image.Exif()
            block.load(exif)
            if _ORIENTATION_TAG in block:
                return int(block[_ORIENTATION_TAG])
        match = _XMP_ORIENTATION.search(xmp)
        return int(match[1]) if match else 1
    except Exception:  # a broken EXIF block says nothing about the pixels, which are fine
        return 1


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Opens anything but a JPEG, with no more pixels than are allowed."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":  # Pillow takes the room as it opens it
        _check_pixels(*_webp_size(data), name)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        _check_png(data)
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[form for form in FORMATS if form in Image.OPEN])
    _check_pixels(image.height, image.width, name)
    return image


def _decode_with_pillow(data: bytes, name: str, *, shrink: int = 1, kind: str = "") -> np.ndarray:
    """Decodes by Pillow. `shrink`: by how much a JPEG may be smaller; `kind`: what to say of one that is not read."""
    try:
        with _open(data, name) as image:
            if shrink > 1:
                image.draft(None, (image.width // shrink, image.height // shrink))
            if int(getattr(image, "tag_v2", {}).get(_SUBFILE_TAG, 0)) & 1:
                raise DataError(
                    f"{name} begins with a preview of another image, as raw files of cameras do: export the photograph "
                    "as JPEG, PNG or an ordinary TIFF"
                )
            image.load()
            try:
                orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
            except Exception:  # see _orientation
                orientation = 1
            return _UPRIGHT.get(orientation, lambda x: x)(_to_rgb(image, name))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} may be a decompression bomb ({error}). Make it smaller, or remove it") from None
    except Image.UnidentifiedImageError:
        if kind:
            raise DataError(f"{name} is {kind}: save it anew as an ordinary JPEG or PNG") from None
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
            raise DataError(f"{name} is a HEIF/HEIC photograph, which is not read: export it as JPEG or PNG") from None
        raise DataError(f"{name} is not an image that can be read (JPEG, PNG, WebP, …): replace or remove it") from None
    except MemoryError:
        raise DataError(f"{name} needs more memory than there is: make it smaller, or remove it") from None
    except Exception as error:  # Pillow's decoders raise whatever foreign bytes lead them to
        raise DataError(f"{name} is a damaged or truncated image ({error}): copy it again, or remove it") from None


def _webp_size(data: bytes) -> tuple[int, int]:
    """Height and width in a WebP's header; (0, 0) where it makes no sense, which the decoder will say."""
    kind, head = data[12:16], data[20:30].ljust(10, b"\x00")
    if kind == b"VP8X":
        return int.from_bytes(head[7:10], "little") + 1, int.from_bytes(head[4:7], "little") + 1
    if kind == b"VP8L":
        sizes = int.from_bytes(head[1:5], "little")
        return (sizes >> 14 & 0x3FFF) + 1, (sizes & 0x3FFF) + 1
    return int.from_bytes(head[8:10], "little") & 0x3FFF, int.from_bytes(head[6:8], "little") & 0x3FFF


def _check_png(data: bytes) -> None:
    """Checks the checksums of a PNG's pixels, which Pillow passes over."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if kind == b"IDAT" and end + 4 <= len(data):
            if zlib.crc32(memoryview(data)[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                raise OSError("a checksum of its pixels is wrong")
        elif kind == b"IEND":
            return
        place = end + 4


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Converts any mode that Pillow opens to uint8 [height, width, 3]."""
    if image.mode == "F":
        raise DataError(f"{name} holds floating-point pixels, whose range is unknown: save it with 8 bits a channel")
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if image.mode == "I" and (grey.min() < 0 or grey.max() > 65_535):
            raise DataError(
                f"{name} holds whole numbers from {grey.min():,} to {grey.max():,}, whose range is unknown: save it "
                "with 8 or 16 bits a channel"
            )
        upper = (grey >> 8).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            upper[grey == clear] = BACKGROUND
        return np.repeat(upper[:, :, None], 3, axis=2)
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, as the pixels were
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.mode == "RGB" and not image.has_transparency_data:
        return np.asarray(image)
    return np.concatenate([_rgb(strip) for strip in _strips(image)])


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _rgb(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data or image.mode == "RGBa":
        if image.mode == "La":  # multiplied by its opacity, which Pillow undoes in this one step only
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (BACKGROUND,) * 3 + (255,)), rgba)
    return np.asarray(image.convert("RGB"))
