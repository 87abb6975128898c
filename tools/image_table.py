"""Makes a small image file of every kind, reads each, and prints a table as Markdown (docs/images.md).

    python tools/image_table.py

Beside each file is how far its pixels are from Pillow's own, at most, in levels of 255. The tests go through the same
files.
"""

import dataclasses
import functools
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from effnet_jax.data.decode import BACKGROUND, decode_image
from effnet_jax.errors import DataError, run_command

HEIGHT, WIDTH = 40, 56
ORIENTATIONS = range(1, 9)


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of file.

    Attributes:
      form: the format's name.
      what: colour model, bits and what is special.
      files: one or more of the kind.
      refused: a part of the error's message; empty for what is read.
      near: how far its pixels may be from Pillow's, in levels; None where Pillow refuses what is read here.
    """

    form: str
    what: str
    files: tuple[bytes, ...]
    refused: str = ""
    near: int | None = 0


@functools.cache
def picture() -> Image.Image:
    """Smooth colours with some edges and a little noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    planes = [128 + 90 * np.sin(x / 9 + y / 21 + 2 * c) + 30 * ((x // 14 + y // 10) % 2) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 4, (HEIGHT, WIDTH, 1))
    return Image.fromarray(np.clip(np.stack(planes, 2) + noise, 0, 255).astype(np.uint8))


def saved(form: str, image: Image.Image | None = None, **options) -> bytes:
    """A file's bytes, as Pillow writes it."""
    buffer = io.BytesIO()
    (picture() if image is None else image).save(buffer, form, **options)
    return buffer.getvalue()


def with_alpha(image: Image.Image) -> Image.Image:
    """The image, less and less opaque to the right."""
    image = image.copy()
    image.putalpha(Image.fromarray(np.tile(np.linspace(255, 0, WIDTH).astype(np.uint8), (HEIGHT, 1))))
    return image


def turned(form: str, **options) -> tuple[bytes, ...]:
    """Eight files, one of each EXIF orientation."""
    files = []
    for orientation in ORIENTATIONS:
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append(saved(form, exif=exif, **options))
    return tuple(files)


def png(
    pixels: np.ndarray, colours: int, bits: int, *extra: tuple[bytes, bytes], size: tuple[int, int] = (WIDTH, HEIGHT)
) -> bytes:
    """A PNG of a kind that Pillow does not write: rows of bytes [height, n], with chunks before the pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\x00" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", *size, bits, colours, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def sized(data: bytes, height: int, width: int) -> bytes:
    """A JPEG that claims another size in its frame header."""
    frame = max(data.find(b"\xff\xc0\x00"), data.find(b"\xff\xc2\x00"))
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def tiff(pixels: np.ndarray, photometric: int, kind: int = 1, subfile: int = 0) -> bytes:
    """An uncompressed little-endian TIFF of [height, width, channels]; kind 1 unsigned, 2 signed, 3 float."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    tags = [(254, 4, (subfile,)), (256, 4, (width,)), (257, 4, (height,)), (258, 3, (bits,) * channels)]
    tags += [(259, 3, (1,)), (262, 3, (photometric,)), (273, 4, (0,)), (277, 3, (channels,)), (278, 4, (height,))]
    tags += [(279, 4, (pixels.nbytes,)), (339, 3, (kind,) * channels)]
    after = 8 + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    start = after + sum(2 * len(value) for _, code, value in tags if code == 3 and len(value) > 2)
    for tag, code, value in tags:
        body = struct.pack(f"<{len(value)}{'H' if code == 3 else 'I'}", *((start,) if tag == 273 else value))
        if len(body) > 4:
            values, body = values + body, struct.pack("<I", after + len(values))
        entries += struct.pack("<HHI", tag, code, len(value)) + body.ljust(4, b"\x00")
    head = b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return head + values + pixels.tobytes()


def jpeg_rows() -> Iterator[Row]:
    """JPEGs: kinds, what cameras get wrong, and damage."""
    plain = saved("JPEG", quality=90)
    progressive = saved("JPEG", quality=90, progressive=True)
    near = 12  # the fast DCT, and noise at high contrast
    for sampling, name in ((0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")):
        yield Row("JPEG", f"8 bits, {name}", (saved("JPEG", quality=90, subsampling=sampling),), near=near)
    yield Row("JPEG", "grey", (saved("JPEG", picture().convert("L"), quality=90),), near=near)
    yield Row("JPEG", "RGB without YCbCr", (saved("JPEG", quality=90, keep_rgb=True),), near=near)
    yield Row("JPEG", "progressive", (progressive,), near=near)
    yield Row("JPEG", "restart markers", (saved("JPEG", quality=90, restart_marker_blocks=2),), near=near)
    yield Row("JPEG", "other Huffman tables", (saved("JPEG", quality=90, optimize=True),), near=near)
    inks = saved("JPEG", picture().convert("CMYK"), quality=90)
    adobe = inks.index(b"\xff\xee")
    yield Row("JPEG", "CMYK of Adobe (inverted)", (inks,))
    yield Row("JPEG", "CMYK without Adobe's marker", (inks[:adobe] + inks[adobe + 16 :],))
    yield Row("JPEG", "YCCK", (inks[: adobe + 15] + b"\x02" + inks[adobe + 16 :],))
    yield Row("JPEG", "EXIF orientation 1 to 8", turned("JPEG", quality=90), near=near)
    yield Row("MPO", "two pictures: the first", (saved("MPO", save_all=True, append_images=[picture()]),), near=near)
    scan = plain.index(b"\xff\xda")
    odd = plain[: scan + 11] + bytes(3) + plain[scan + 14 :]
    yield Row("JPEG", "scan header's spectral fields zero", (odd,), near=near)
    yield Row("JPEG", "JFIF version 3", (plain.replace(b"JFIF\x00\x01", b"JFIF\x00\x03"),), near=near)
    adobe_of_none = b"\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x07"
    yield Row("JPEG", "Adobe's marker with an unknown number", (plain[:20] + adobe_of_none + plain[20:],), near=near)
    yield Row("JPEG", "EXIF block broken", (saved("JPEG", quality=90, exif=b"Exif\x00\x00rubbish"),), near=near)
    yield Row("JPEG", "stray bytes before a segment", (plain[:scan] + bytes(7) + plain[scan:],), near=near)
    yield Row("JPEG", "stray bytes before the first segment", (plain[:2] + bytes(7) + plain[2:],), near=None)
    padded = tuple(each[:-2] + bytes(50) + each[-2:] for each in (plain, progressive))
    yield Row("JPEG", "padding before the end, also progressive", padded, near=near)
    yield Row("JPEG", "anything after the end", (plain + b"more" * 50, plain + plain), near=near)
    yield Row("JPEG", "end marker missing, also progressive", (plain[:-2], progressive[:-2]), near=None)
    half = len(plain) // 2
    lost = "damaged or truncated JPEG"
    yield Row("JPEG", "cut off, in headers and pixels", (plain[:100], plain[:half], plain[:-5]), lost)
    yield Row("JPEG", "cut off, end marker put after", (plain[:half] + b"\xff\xd9", plain[:-5] + b"\xff\xd9"), lost)
    second = progressive.index(b"\xff\xda", progressive.index(b"\xff\xda") + 2)
    yield Row("JPEG", "progressive, cut off in or after a scan", (progressive[:-9], progressive[:second]), lost)
    yield Row("JPEG", "progressive, fewer scans, but ended", (progressive[:second] + b"\xff\xd9",), near=near)
    yield Row("JPEG", "bytes overwritten", (plain[:half] + b"\xff\xd5" * 20 + plain[half + 40 :],), lost)
    yield Row("JPEG", "odd spectral fields and cut off", (odd[:-40], odd[:-40] + b"\xff\xd9"), lost)
    frame = plain.index(b"\xff\xc0")
    deep = plain[:frame] + b"\xff\xc1\x00\x11\x0c" + plain[frame + 5 :]
    yield Row("JPEG", "12 bits", (deep,), "kind of JPEG that cannot be read")
    yield Row("JPEG", "108 megapixels, at full size", (sized(plain, 9000, 12_000),), "108,000,000 pixels")
    yield Row("JPEG", "108 megapixels, progressive", (sized(progressive, 9000, 12_000),), "held in memory")


def png_rows() -> Iterator[Row]:
    """PNGs of every colour type and depth."""
    rgb = np.asarray(picture())
    grey = np.asarray(picture().convert("L"))
    alpha = np.asarray(with_alpha(picture()).getchannel("A"))[:, :, None]

    def deep(pixels: np.ndarray) -> np.ndarray:
        return (pixels.astype(np.uint16) * 257 - pixels % 7).clip(0).astype(">u2").reshape(HEIGHT, -1)

    def packed(values: np.ndarray, bits: int) -> np.ndarray:
        spread = np.unpackbits(values[:, :, None].astype(np.uint8), axis=2)[:, :, -bits:]
        return np.packbits(spread.reshape(HEIGHT, -1), axis=1)

    def palette(colours: int) -> Image.Image:
        return picture().quantize(colours)

    yield Row("PNG", "1 bit", (saved("PNG", picture().convert("1")),))
    yield Row("PNG", "grey, 2 and 4 bits", (png(packed(grey >> 6, 2), 0, 2), png(packed(grey >> 4, 4), 0, 4)))
    yield Row("PNG", "grey, 8 bits", (saved("PNG", picture().convert("L")),))
    yield Row("PNG", "grey, 16 bits: the upper 8", (png(deep(grey), 0, 16),))
    yield Row("PNG", "grey with opacity, 8 bits", (saved("PNG", with_alpha(picture().convert("L"))),))
    yield Row("PNG", "grey with opacity, 16 bits", (png(deep(np.concatenate([grey[:, :, None], alpha], 2)), 4, 16),))
    yield Row("PNG", "RGB, 8 bits", (saved("PNG"),))
    yield Row("PNG", "RGB, 16 bits", (png(deep(rgb), 2, 16),))
    yield Row("PNG", "RGBA, 8 bits", (saved("PNG", with_alpha(picture())),))
    yield Row("PNG", "RGBA, 16 bits", (png(deep(np.concatenate([rgb, alpha], 2)), 6, 16),))
    yield Row("PNG", "palette, 1, 2, 4 and 8 bits", tuple(saved("PNG", palette(n)) for n in (2, 4, 16, 200)))
    yield Row("PNG", "palette, one colour transparent", (saved("PNG", palette(16), transparency=3),))
    steps = bytes(range(0, 256, 16))
    yield Row("PNG", "palette, opacity of each colour", (saved("PNG", palette(16), transparency=steps),))
    clear = int(grey[3, 3])
    yield Row("PNG", "grey, one level transparent", (saved("PNG", picture().convert("L"), transparency=clear),))
    colour = tuple(int(value) for value in rgb[3, 3])
    yield Row("PNG", "RGB, one colour transparent", (saved("PNG", transparency=colour),))
    level = (b"tRNS", struct.pack(">H", clear * 257 - clear % 7))
    yield Row("PNG", "grey, 16 bits, one level transparent", (png(deep(grey), 0, 16, level),), near=255)
    levels = (b"tRNS", struct.pack(">HHH", *(value * 257 - value % 7 for value in colour)))
    yield Row("PNG", "RGB, 16 bits, one colour transparent", (png(deep(rgb), 2, 16, levels),), near=255)
    yield Row("PNG", "eXIf orientation 1 to 8", turned("PNG"))
    yield Row("PNG", "animated: the first frame", (saved("PNG", save_all=True, append_images=[picture().rotate(90)]),))
    plain = saved("PNG")
    yield Row("PNG", "end chunk missing", (plain[:-12],))
    yield Row("PNG", "cut off", (plain[: len(plain) // 2], plain[:-60]), "damaged or truncated")
    flipped = bytearray(plain)
    flipped[len(plain) // 2] ^= 4
    yield Row("PNG", "a bit of the pixels flipped", (bytes(flipped),), "damaged or truncated")
    yield Row("PNG", "900 megapixels", (png(rgb, 2, 8, size=(30_000, 30_000)),), "decompression bomb")


def tiff_rows() -> Iterator[Row]:
    """TIFFs by colour model, number type and compression."""
    rgb, grey = np.asarray(picture()), np.asarray(picture().convert("L"))[:, :, None]
    deep = grey.astype(np.uint16) * 257
    yield Row("TIFF", "1 bit, fax", (saved("TIFF", picture().convert("1"), compression="group4"),))
    yield Row("TIFF", "grey, 8 bits", (tiff(grey, 1),))
    yield Row("TIFF", "grey, 0 is white", (tiff(grey, 0),))
    big = saved("TIFF", Image.frombytes("I;16B", (WIDTH, HEIGHT), deep.astype(">u2").tobytes()))
    yield Row("TIFF", "grey, 16 bits, both byte orders", (tiff(deep, 1), big))
    yield Row("TIFF", "RGB, 8 bits", (saved("TIFF"),))
    yield Row("TIFF", "RGB, 16 bits", (tiff(rgb.astype(np.uint16) * 257, 2),))
    yield Row("TIFF", "RGBA", (saved("TIFF", with_alpha(picture())),))
    yield Row("TIFF", "grey with opacity", (saved("TIFF", with_alpha(picture().convert("L"))),))
    yield Row("TIFF", "palette", (saved("TIFF", picture().quantize(64)),))
    yield Row("TIFF", "CMYK", (saved("TIFF", picture().convert("CMYK")),))
    yield Row("TIFF", "L*a*b*", (tiff(np.stack([grey[:, :, 0], grey[:, :, 0] // 9, grey[:, :, 0] // 7], 2), 8),))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield Row("TIFF", f"RGB, {compression.split('_')[-1]}", (saved("TIFF", compression=compression),))
    yield Row("TIFF", "orientation 1 to 8", turned("TIFF"))
    yield Row("TIFF", "floating point", (tiff(grey / np.float32(255), 1, 3),), "floating-point")
    wide = grey.astype(np.uint32) << 16
    yield Row("TIFF", "grey, 32 bits", (tiff(wide, 1),), "whole numbers from")
    yield Row("TIFF", "grey, below 0", (tiff(grey.astype(np.int16) - 100, 1, 2),), "whole numbers from")
    yield Row("TIFF", "a raw file's preview", (tiff(rgb, 2, subfile=1),), "preview of another image")
    cut = tuple(each[:2000] for each in (saved("TIFF"), saved("TIFF", compression="tiff_lzw")))
    yield Row("TIFF", "cut off", (tiff(rgb, 2)[:-50], *cut), "damaged or truncated|not an image")


def other_rows() -> Iterator[Row]:
    """The other formats."""
    Image.init()  # so that it names all that this Pillow writes
    rgba = with_alpha(picture())
    grey = np.asarray(picture().convert("L"))
    frames: dict[str, Any] = {"save_all": True, "append_images": [picture().rotate(180)]}
    yield Row("WebP", "lossy", (saved("WEBP", quality=90),))
    yield Row("WebP", "lossless", (saved("WEBP", lossless=True),))
    yield Row("WebP", "with opacity", (saved("WEBP", rgba, lossless=True), saved("WEBP", rgba)))
    yield Row("WebP", "animated: the first frame", (saved("WEBP", **frames),))
    yield Row("WebP", "EXIF orientation 1 to 8", turned("WEBP", lossless=True))
    plain = saved("WEBP", lossless=True)
    yield Row("WebP", "cut off", (plain[:20], plain[:-30]), "damaged or truncated")
    vast = b"RIFF\x00\x10\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(4) + b"\xff\xff\x00\xff\xff\x00"
    yield Row("WebP", "4,295 megapixels in headers", (vast,), "decompression bomb")
    clear = picture().quantize(30)
    yield Row("GIF", "palette", (saved("GIF"),))
    yield Row("GIF", "transparent", (saved("GIF", clear, transparency=5),))
    yield Row("GIF", "animated: the first frame", (saved("GIF", **frames),))
    yield Row("GIF", "cut off", (saved("GIF")[:-40],), "damaged or truncated")
    kinds = [picture().convert("1"), picture().convert("L"), picture().quantize(16), picture(), rgba]
    yield Row("BMP", "1, 8, 24 and 32 bits", tuple(saved("BMP", kind) for kind in kinds))
    yield Row("BMP", "cut off", (saved("BMP")[:-40],), "damaged or truncated")
    size = b"%d %d" % (WIDTH, HEIGHT)
    yield Row("PBM, PGM, PPM", "1 and 8 bits", tuple(saved("PPM", kind) for kind in (kinds[0], kinds[1], kinds[3])))
    text = b"P2 %b 255\n" % size + b" ".join(b"%d" % value for value in grey.ravel())
    yield Row("PGM", "as text", (text,))
    yield Row("PGM", "16 bits", (b"P5 %b 65535\n" % size + (grey.astype(">u2") * 257).astype(">u2").tobytes(),))
    yield Row("PGM", "12 bits in 16", (b"P5 %b 4095\n" % size + (grey.astype(">u2") * 16).astype(">u2").tobytes(),))
    floats = b"Pf\n%b\n-1.0\n" % size + grey.astype("<f4").tobytes()
    yield Row("PFM", "floating point", (floats,), "floating-point")
    yield Row("PPM", "cut off", (saved("PPM")[:-40], text[:-40]), "damaged or truncated")
    if "JPEG2000" in Image.SAVE:
        yield Row("JPEG 2000", "RGB, lossless and lossy", (saved("JPEG2000"), saved("JPEG2000", irreversible=True)))
        yield Row("JPEG 2000", "grey, with opacity", (saved("JPEG2000", kinds[1]), saved("JPEG2000", rgba)))
        yield Row("JPEG 2000", "cut off", (saved("JPEG2000")[:-40],), "damaged or truncated")
    if "AVIF" in Image.SAVE:
        yield Row("AVIF", "RGB, with opacity", (saved("AVIF"), saved("AVIF", rgba)))
        yield Row("AVIF", "orientation 1 to 8", turned("AVIF"))
        yield Row("AVIF", "cut off", (saved("AVIF")[:-40],), "damaged or truncated")
    icon = rgba.resize((32, 32))
    icons = [saved("ICO", icon, sizes=[(32, 32)], bitmap_format=kind) for kind in ("png", "bmp")]
    yield Row("ICO", "PNG and BMP inside", tuple(icons))
    targa = (saved("TGA"), saved("TGA", compression="tga_rle"), saved("TGA", rgba), saved("TGA", kinds[1]))
    yield Row("TGA", "RGB, packed, RGBA, grey", targa)
    yield Row("TGA", "cut off", (saved("TGA")[:-80],), "damaged or truncated")
    yield Row("PCX, SGI, DDS", "RGB", (saved("PCX"), saved("SGI"), saved("DDS")))
    yield Row("HEIC", "", (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(50),), "HEIF/HEIC")
    yield Row("EPS, SVG, text", "", (saved("EPS"), b"<svg width='9' height='9'/>", b"no image"), "not an image")
    yield Row("any", "empty file", (b"",), "empty file")


def rows() -> list[Row]:
    """All of the table."""
    return [row for part in (jpeg_rows, png_rows, tiff_rows, other_rows) for row in part()]


def pillow_pixels(data: bytes) -> np.ndarray:
    """What Pillow alone makes of a file: uint8 [height, width, 3], upright and on white."""
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, 2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (BACKGROUND,) * 3 + (255,)), image)
    return np.asarray(image.convert("RGB"))


def difference(data: bytes) -> int | None:
    """The largest difference between our pixels and Pillow's; None where Pillow refuses the file.

    Args:
      data: the bytes of an image file.

    Returns:
      Levels of 255.

    Raises:
      DataError: we refuse it.
    """
    ours = decode_image(data)
    try:
        theirs = pillow_pixels(data)
    except Exception:
        return None
    return int(np.abs(ours.astype(int) - theirs).max()) if ours.shape == theirs.shape else 255


def line(row: Row) -> str:
    """A row of the table as Markdown."""
    try:
        found = [difference(data) for data in row.files]
        read, figure = "yes", "Pillow refuses it" if None in found else str(max(each or 0 for each in found))
    except DataError as error:
        read, figure = f"no: {str(error).removeprefix('the image ')}", ""
    return f"| {row.form} | {row.what} | {read} | {figure} |"


def main() -> None:
    print("| format | what | read | farthest from Pillow |\n|---|---|---|---|")
    for row in rows():
        print(line(row))


if __name__ == "__main__":
    run_command(main)
