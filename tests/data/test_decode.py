"""Decoding image files: TensorFlow's pixels of JPEGs, every kind that Pillow reads, no damaged file taken for sound.

tests/tools/test_image_table.py goes through one file of every kind.
"""

import io
import re
import resource
import struct
import time
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from effnet_jax.data import decode, jpeg
from effnet_jax.data.decode import decode_image, range_note
from effnet_jax.errors import DataError


@pytest.mark.parametrize("name", ["china_portrait", "tiny_90x70"])
def test_jpeg_pixels_are_tensorflows(golden, name):
    expected = np.asarray(Image.open(golden / "preprocess" / f"{name}.tfdecoded.png"))
    path = golden / "preprocess" / f"{name}.jpg"
    assert np.array_equal(decode_image(path), expected)
    assert np.array_equal(decode_image(path.read_bytes()), expected)
    assert not np.array_equal(np.asarray(Image.open(path)), expected)  # Pillow alone would not do


@pytest.mark.parametrize("name", ["china", "flower"])
def test_jpeg_pixels_are_tensorflows_for_larger_files(shared, name):
    folder = shared / "golden" / "preprocess"
    expected = np.asarray(Image.open(folder / f"{name}.tfdecoded.png"))
    assert np.array_equal(decode_image(folder / f"{name}.jpg"), expected)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def colours():
    """A 4x6 image whose left half is red and whose right half is blue, the top left pixel green."""
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, :3, 0] = 255
    image[:, 3:, 2] = 255
    image[0, 0] = (0, 255, 0)
    return image


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_lossless_formats_keep_their_pixels(colours, form):
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(decode_image(encoded(Image.fromarray(colours), form, **options)), colours)


def test_palette(colours):
    assert np.array_equal(decode_image(encoded(Image.fromarray(colours).quantize(8))), colours)


def test_grey_is_repeated():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for form in ("PNG", "JPEG"):
        image = decode_image(encoded(Image.fromarray(grey), form, **({"quality": 100} if form == "JPEG" else {})))
        assert image.shape == (8, 8, 3) and np.ptp(image, axis=2).max() == 0
        assert np.abs(image[..., 0].astype(int) - grey).max() <= 4  # the fast DCT at work


def test_sixteen_bits_keep_the_upper_eight():
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    assert decode_image(encoded(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_one_bit_is_black_and_white():
    assert decode_image(encoded(Image.fromarray(np.array([[True, False]]))))[0, :, 1].tolist() == [255, 0]


def test_transparent_pixels_are_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (255, 128, 0)  # black: opaque, half, gone
    assert decode_image(encoded(Image.fromarray(rgba)))[0, :, 0].tolist() == [0, 127, 255]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    assert decode_image(encoded(palette, transparency=1))[0, 1].tolist() == [255, 255, 255]


def test_cmyk_jpeg_comes_out_as_rgb():
    red = Image.new("RGB", (16, 16), (250, 10, 10))
    pixel = decode_image(encoded(red.convert("CMYK"), "JPEG", quality=95))[8, 8].astype(int)
    assert pixel[0] > 230 and pixel[1:].max() < 40


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(colours, form, orientation):
    # Store the picture as a camera would, so that the tag brings it back.
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(orientation)
    big = np.kron(colours, np.ones((16, 16, 1), np.uint8))
    stored = decode._UPRIGHT[undo](big) if undo else big
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    image = decode_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **options))
    assert image.shape == big.shape
    assert np.abs(image.astype(int) - big).mean() < 3


def test_exif_orientation_agrees_with_pillow(colours):
    from PIL import ImageOps

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(colours), exif=exif)
        assert np.array_equal(decode_image(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_a_broken_exif_block_costs_no_pixels(colours):
    data = encoded(Image.fromarray(colours), "JPEG", exif=b"Exif\x00\x00garbage")
    assert decode_image(data).shape == colours.shape


def noise_jpeg(side=64):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return simplejpeg.encode_jpeg(pixels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"no image at all", "not an image"),
        (noise_jpeg()[:1000], "damaged or truncated JPEG"),
        (noise_jpeg()[:20], "damaged or truncated JPEG"),
        (
            encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))[:2000],
            "truncated",
        ),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_bad_images_are_named(tmp_path, content, message):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        decode_image(path)
    assert str(path) in str(error.value)


def test_damaged_bytes_inside_a_jpeg_are_noticed():
    data = bytearray(noise_jpeg())
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff\xd5" * 20
    with pytest.raises(DataError, match="truncated JPEG"):
        decode_image(bytes(data))


def test_stray_bytes_between_segments_are_harmless():
    data = noise_jpeg()
    assert np.array_equal(decode_image(data[:-2] + b"\x00" * 5 + data[-2:]), decode_image(data))


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.jpg: there is no such file"):
        decode_image(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        decode_image(tmp_path)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_decompression_bomb(monkeypatch, form):
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb\.jpg has 1,024 pixels \(32x32\).*decompression bomb"):
        decode_image(encoded(Image.new("RGB", (32, 32)), form), name="bomb.jpg")


def test_a_real_decompression_bomb_is_refused_before_it_is_unpacked():
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    with pytest.raises(DataError, match="decompression bomb"):
        decode_image(png_of(head, bytes(3_751 * 30_000)))


def photograph(height=96, width=128, seed=0):
    """Smooth colours with noise, as a camera's."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = [128 + 80 * np.sin(x / 11 + y / 17 + 2 * c) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 1))
    return np.clip(np.stack(planes, 2) + noise, 0, 255).astype(np.uint8)


PLAIN = encoded(Image.fromarray(photograph()), "JPEG", quality=90)
PROGRESSIVE = encoded(Image.fromarray(photograph()), "JPEG", quality=90, progressive=True)


def places(data, marker):
    """Where a marker is found."""
    found, place = [], data.find(marker)
    while place >= 0:
        found.append(place)
        place = data.find(marker, place + 2)
    return found


def with_odd_spectral_fields(data):
    scan = data.index(b"\xff\xda")
    return data[: scan + 11] + bytes(3) + data[scan + 14 :]


def harmless(data):
    """Names and files, each of which has all pixels of `data` and is written badly."""
    scans = places(data, b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, scans[-1])
    rubbish = bytes(range(10))
    yield "version", data.replace(b"JFIF\x00\x01", b"JFIF\x00\x07")
    yield "before the first segment", data[:2] + rubbish + data[2:]
    yield "between segments", data[:tables] + rubbish + data[tables:]
    yield "fill bytes", data[:tables] + b"\xff" * 9 + data[tables:]
    yield "before the end", data[:-2] + rubbish + data[-2:]
    yield "padding before the end", data[:-2] + bytes(3000) + data[-2:]
    yield "after the end", data + rubbish * 100
    yield "no end", data[:-2]
    yield "half an end", data[:-1]
    yield "another picture for an end", data[:-2] + data
    yield "a broken profile", data[:20] + b"\xff\xe2\x00\x10ICC_PROFILE\x00\x09\x02" + data[20:]
    yield "all", data[:2] + rubbish + data[2:20] + b"\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x09" + data[20:-2]


@pytest.mark.parametrize("name", [name for name, _ in harmless(PLAIN)])
@pytest.mark.parametrize("kind", ["plain", "progressive"])
def test_what_costs_no_pixel_is_no_damage(kind, name):
    data = {"plain": PLAIN, "progressive": PROGRESSIVE}[kind]
    assert np.array_equal(decode_image(dict(harmless(data))[name]), decode_image(data))
    small = decode_image(dict(harmless(data))[name], min_side=40)
    assert np.array_equal(small, decode_image(data, min_side=40)) and small.shape == (48, 64, 3)


def test_spectral_fields_of_phones_are_read():
    odd = with_odd_spectral_fields(PLAIN)
    with pytest.raises(ValueError, match="Invalid SOS parameters"):
        simplejpeg.decode_jpeg(odd)
    assert np.array_equal(decode_image(odd), decode_image(PLAIN))


def test_a_harmless_complaint_does_not_hide_lost_pixels():
    """libjpeg tells of its first complaint only."""
    odd = with_odd_spectral_fields(PLAIN)
    for cut in (5, 50, len(odd) // 2):
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(DataError, match="damaged or truncated JPEG"):
                decode_image(odd[:-cut] + end)
    overwritten = odd[:-300] + b"\xff\xd5" * 20 + odd[-260:]
    with pytest.raises(DataError, match="damaged or truncated JPEG"):
        decode_image(overwritten)


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("data", [PLAIN, PROGRESSIVE], ids=["plain", "progressive"])
def test_no_cut_is_taken_for_the_whole(data, end):
    """Wherever a file is cut off, it is refused or has all its pixels."""
    whole = decode_image(data)
    # A progressive file that is ended on purpose after some scans is a picture of fewer details, which all show.
    scans = {table for scan in places(data, b"\xff\xda") for table in range(data.rfind(b"\xff\xc4", 0, scan), scan + 1)}
    for cut in {*range(2, len(data), 41), *range(len(data) - 12, len(data))} - (scans if end else set()):
        try:
            image = decode_image(data[:cut] + end)
        except DataError:
            continue
        assert np.array_equal(image, whole) or (end and data is PROGRESSIVE), cut


def test_a_progressive_file_cut_off_between_scans_is_refused():
    for scan in places(PROGRESSIVE, b"\xff\xda")[1:]:
        table = PROGRESSIVE.rfind(b"\xff\xc4", 0, scan)
        with pytest.raises(DataError, match="truncated JPEG"):
            decode_image(PROGRESSIVE[:table])


def test_a_scan_whose_marker_is_lost_is_refused():
    """Its data look like stray bytes."""
    scan = PROGRESSIVE.rindex(b"\xff\xda")
    with pytest.raises(DataError, match="extraneous bytes"):
        decode_image(PROGRESSIVE[: scan + 1] + b"\xfe" + PROGRESSIVE[scan + 2 :])


def test_many_bytes_left_over_are_damage():
    surplus = np.random.default_rng(0).integers(0, 255, 1000, np.uint8).tobytes()
    with pytest.raises(DataError, match="extraneous bytes"):
        decode_image(PLAIN[:-2] + surplus + PLAIN[-2:])


def sized(data, height, width):
    frame = max(data.find(b"\xff\xc0\x00"), data.find(b"\xff\xc2\x00"))
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def test_a_bomb_of_scans_is_refused():
    scan = PROGRESSIVE.rindex(b"\xff\xda")
    start = time.perf_counter()
    with pytest.raises(DataError, match="more than 100 scans"):
        decode_image(sized(PROGRESSIVE[:-2] + PROGRESSIVE[scan:-2] * 20_000 + b"\xff\xd9", 8000, 8000))
    assert time.perf_counter() - start < 2


def test_a_large_photograph_is_judged_by_what_is_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100 * 100)
    pixels = photograph(300, 400)
    large = encoded(Image.fromarray(pixels), "JPEG", quality=90)
    assert decode_image(large, min_side=30).shape == (38, 50, 3)
    assert decode_image(large, min_side=75).shape == (75, 100, 3)
    with pytest.raises(DataError, match=r"120,000 pixels \(400x300\)"):
        decode_image(large)
    with pytest.raises(DataError, match=r"30,000 pixels \(200x150\), even decoded at 1/2"):
        decode_image(large, min_side=76)
    inks = encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=90)
    assert decode_image(inks, min_side=30).shape == (38, 50, 3)
    progressive = encoded(Image.fromarray(pixels), "JPEG", quality=90, progressive=True)
    with pytest.raises(DataError, match="progressive"):  # a decoder holds all of it
        decode_image(progressive, min_side=30)


def test_a_photograph_of_108_megapixels_is_decoded_at_an_eighth():
    grey = np.full((9_000, 12_000, 1), 90, np.uint8)
    whole = simplejpeg.encode_jpeg(grey, colorspace="GRAY", colorsubsampling="Gray")
    exif = Image.Exif()
    exif[0x0112] = 6
    block = b"Exif\x00\x00" + exif.tobytes().removeprefix(b"Exif\x00\x00")
    whole = whole[:20] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[20:]
    image = decode_image(whole, min_side=512)
    assert image.shape == (1500, 1125, 3) and np.ptp(image) == 0  # turned upright too
    with pytest.raises(DataError, match="108,000,000 pixels"):
        decode_image(whole)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_after_much_metadata(colours, orientation):
    """Behind 64 KiB of other segments, and from XMP where there is no EXIF, as Pillow has it."""
    from PIL import ImageOps

    big = Image.fromarray(np.kron(colours, np.ones((16, 16, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(big, "JPEG", quality=100, subsampling=0, exif=exif)
    far = data[:2] + (b"\xff\xe5\xff\xff" + bytes(65_533)) * 2 + data[2:]
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    assert decode_image(far).shape == expected.shape and np.abs(decode_image(far) - expected).mean() < 3
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation
    block = b"http://ns.adobe.com/xap/1.0/\x00" + xmp
    plain = encoded(big, "JPEG", quality=100, subsampling=0)
    plain = plain[:20] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[20:]
    assert np.array_equal(decode_image(plain), decode_image(data))


def test_cmyk_is_pillows_to_the_bit():
    inks = encoded(Image.fromarray(photograph()).convert("CMYK"), "JPEG", quality=95)
    assert np.array_equal(decode_image(inks), np.asarray(Image.open(io.BytesIO(inks)).convert("RGB")))
    with pytest.raises(DataError, match="truncated JPEG"):  # which Pillow passes over
        decode_image(inks[: len(inks) // 2] + b"\xff\xd9")


def test_sixteen_bit_colours_that_are_clear_are_white():
    head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    colours_ = struct.pack(">6H", 1000, 2000, 3000, 40_000, 50_000, 60_000)
    data = png_of(head, b"\x00" + colours_, (b"tRNS", struct.pack(">3H", 40_000, 50_000, 60_000)))
    assert decode_image(data)[0].tolist() == [[3, 7, 11], [255, 255, 255]]
    head = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    data = png_of(head, b"\x00" + struct.pack(">2H", 1000, 40_000), (b"tRNS", struct.pack(">H", 1000)))
    assert decode_image(data)[0, :, 0].tolist() == [255, 156]


def png_of(head, rows, *extra):
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_premultiplied_opacity_is_undone():
    image = Image.new("La", (1, 1), (50, 100))  # black and white at 50 of 100: half grey, at an opacity of 100
    assert decode._to_rgb(image, "")[0, 0].tolist() == [205, 205, 205]
    image = Image.new("RGBa", (1, 1), (50, 50, 50, 100))
    assert decode._to_rgb(image, "")[0, 0].tolist() == [205, 205, 205]


def test_large_transparent_images_are_converted_in_strips(monkeypatch):
    image = Image.fromarray(photograph())
    image.putalpha(Image.fromarray(photograph(seed=1)[..., 0]))
    for kind in (image, image.quantize(30), image.convert("LA")):
        data = encoded(kind)
        monkeypatch.setattr(decode, "_STRIP", 1 << 20)
        whole = decode_image(data)
        monkeypatch.setattr(decode, "_STRIP", 1000)
        assert np.array_equal(decode_image(data), whole)


def test_a_broken_exif_block_of_a_png_costs_no_pixels(colours):
    assert np.array_equal(decode_image(encoded(Image.fromarray(colours), exif=b"Exif\x00\x00rubbish")), colours)


def test_files_that_start_other_programs_are_no_images():
    with pytest.raises(DataError, match="not an image that can be read"):
        decode_image(encoded(Image.new("RGB", (9, 9)), "EPS"))
    assert not {"EPS", "WMF", "GRIB", "MPEG"} & set(decode.FORMATS)


GREY = photograph()[..., 0].astype(int)  # 30 to 230


def deep(pixels):
    return encoded(Image.fromarray(pixels.astype(np.uint16)))


def shallow(pixels):
    return encoded(Image.fromarray(pixels.astype(np.uint8)))


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (
            deep(GREY * 16),
            r"its 16-bit values go up to 3,\d{3} of 65,535, .*multiply them by 16, or save 8 bits a channel",
        ),
        (deep(GREY * 4), "multiply them by 64"),
        (deep(GREY), "multiply them by 256"),
        (deep(GREY + 30_000), r"lie between 30,0\d\d and 30,\d{3} of 65,535, .*nearly one colour: stretch them"),
        (shallow(GREY > 128), "its 8-bit values go up to 1 of 255, .*nearly black: multiply them by 255"),
        (shallow(GREY // 26), "its 8-bit values go up to . of 255, .*multiply them by 16"),
        (shallow(photograph() > 128), "its 8-bit values go up to 1 of 255"),
        (encoded(Image.fromarray((GREY > 128).astype(np.uint8)), "JPEG", quality=100), "its 8-bit values go up to 1"),
    ],
)
def test_values_in_a_small_part_of_their_range_are_noted(data, note):
    assert re.fullmatch(f".*{note}.*", range_note(data))


@pytest.mark.parametrize(
    "data",
    [
        deep(GREY * 257),
        encoded(Image.fromarray((GREY * 257).astype(np.uint16)), "TIFF"),
        shallow(GREY),
        shallow(photograph()),
        PLAIN,
        encoded(Image.fromarray(GREY > 128)),  # one bit is black and white
        encoded(Image.fromarray(photograph()).quantize(4)),
        shallow(GREY * 0),  # of one value throughout
        shallow(GREY * 0 + 3),
        shallow(GREY // 26)[:-500],  # for decoding to tell
        encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        b"no image",
        b"",
    ],
)
def test_no_note_of_what_is_well_or_unreadable(data):
    assert range_note(data) == ""


def test_colours_of_12_bits_in_16_are_noted():
    values = (photograph(4, 4).astype(np.uint16) * 16).astype(">u2")
    rows = b"".join(b"\x00" + row.tobytes() for row in values)
    said = range_note(png_of(struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0), rows))
    assert "multiply them by 16," in said
    rows = b"".join(b"\x00" + row.tobytes() for row in (values // 16).astype(">u2"))
    assert "multiply them by 256," in range_note(png_of(struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0), rows))


def mutated(data, random):
    """The file with one to four of: bits flipped, bytes overwritten, cut out, put in, or all after a place lost."""
    data = bytearray(data)
    for _ in range(random.integers(1, 5)):
        place = int(random.integers(2, max(3, len(data) if random.random() < 0.6 else min(len(data), 700))))
        kind = random.integers(0, 6)
        length = int(random.integers(1, 40))
        if kind == 0:
            for index in range(place, min(len(data), place + length)):
                data[index] ^= 1 << int(random.integers(8))
        elif kind == 1 and place < len(data):
            data[place] = int(random.integers(256))
        elif kind == 2:
            data[place : place + length] = random.bytes(length)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = (random.bytes(length), bytes(length), b"\xff" * length)[int(random.integers(3))]
        elif random.random() < 0.3:
            del data[place:]
    return bytes(data)


def seeds(form):
    image = Image.fromarray(photograph(40, 56))
    if form == "JPEG":
        kinds = [{"subsampling": s, "quality": q} for s, q in ((0, 90), (1, 50), (2, 95))]
        kinds += [{"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}]
        return [encoded(i, form, **k) for k in kinds for i in (image, image.convert("L"), image.convert("CMYK"))]
    if form == "PNG":
        return [encoded(i) for i in (image, image.quantize(20), image.convert("LA"), image.convert("1"))]
    if form == "WEBP":
        return [encoded(image, form), encoded(image, form, lossless=True), encoded(image.convert("RGBA"), form)]
    return [encoded(image, form, **k) for k in ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"})]


def pillows(data):
    """Pillow's pixels; of a JPEG that only we accept, those of its repaired file."""
    image = Image.open(io.BytesIO(data), formats=list(decode.FORMATS))
    image.load()
    return decode._UPRIGHT.get(image.getexif().get(0x0112, 1), lambda x: x)(decode._to_rgb(image, ""))


def fuzz(form, count, monkeypatch):
    """Decodes mutated files: an error that says so, or Pillow's pixels. Returns how many were read."""
    monkeypatch.setattr(jpeg, "FAST_DCT", False)  # so that pixels are Pillow's to the bit
    random = np.random.default_rng(20_240_601)
    files = seeds(form)
    read = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(count):
        data = mutated(files[index % len(files)], random)
        start = time.perf_counter()
        try:
            image = decode_image(data)
        except DataError:
            continue
        finally:
            assert time.perf_counter() - start < 20, index
        read += 1
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        try:
            expected = pillows(data)
        except Exception:  # it refuses what lacks only its end
            assert form == "JPEG", index
            expected = pillows(jpeg.read_jpeg(data).file())
        assert np.array_equal(image, expected), index
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 3 << 20  # KiB
    return read


@pytest.mark.filterwarnings("ignore")  # Pillow's, of metadata
@pytest.mark.parametrize(("form", "count"), [("JPEG", 100), ("PNG", 30), ("WEBP", 30), ("TIFF", 30)])
def test_mutated_files(form, count, monkeypatch):
    assert 0 < fuzz(form, count, monkeypatch) < count


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("form", "count"), [("JPEG", 1000), ("PNG", 300), ("WEBP", 300), ("TIFF", 300)])
def test_many_mutated_files(form, count, monkeypatch):
    assert 0 < fuzz(form, count, monkeypatch) < count
