"""Decoding, cropping and resizing against what the original code and TensorFlow gave."""

import io
import json

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from effnet_jax.data import preprocess
from effnet_jax.data.preprocess import crop_window, decode_image, evaluation_image, training_square
from effnet_jax.data.resize import resize_bicubic, resize_bilinear
from effnet_jax.errors import ConfigError, DataError

CROPS = {"pad32": "pad32", "frac": "frac", "nocrop": "none"}
RESIZES = {"bicubic": resize_bicubic, "bilinear": resize_bilinear}


def outputs(folder):
    """Yields (key, crop, size, method, what preprocess.json says, decoded pixels, arrays) of a folder's goldens."""
    arrays = np.load(folder / "preprocess_golden.npz")
    for image in json.loads((folder / "preprocess.json").read_text())["images"].values():
        if (folder / image["decoded_png"]).exists():
            pixels = np.asarray(Image.open(folder / image["decoded_png"]))
            for key, said in image["outputs"].items():
                _, rule, size, method = key.split("/")
                yield key, CROPS[rule], int(size), method, said, pixels, arrays


def check_outputs(folder):
    count = 0
    for key, crop, size, method, said, pixels, arrays in outputs(folder):
        top, left, side = crop_window(*pixels.shape[:2], size, crop)
        assert [top, left, side, side] == said["window_yxhw"], key
        window = pixels[top : top + side, left : left + side]
        result = evaluation_image(pixels, size, crop, resize=method)
        # Where the original decoded the crop's last column otherwise, the golden holds the crop as it saw it.
        exact = result
        if f"{key}/crop" in arrays.files:
            assert np.array_equal(window[:, :-1], arrays[f"{key}/crop"][:, :-1]), key
            exact = RESIZES[method](arrays[f"{key}/crop"], size, size)
        assert np.array_equal(exact[arrays[f"{key}/rows"]], arrays[f"{key}/rows_f32"]), key
        if f"{key}/q" in arrays.files:
            assert np.abs(exact - arrays[f"{key}/q"] / 64).max() <= 0.01, key
            assert np.abs(result - arrays[f"{key}/q"] / 64).max() <= said["max_error_if_slicing_the_full_decode"] + 0.01
        count += 1
    return count


def test_evaluation_equals_the_original_to_the_bit(golden):
    assert check_outputs(golden / "preprocess") == 5


def test_evaluation_equals_the_original_on_every_golden(shared):
    assert check_outputs(shared / "golden" / "preprocess") >= 12


def test_resize_equals_tensorflow_to_the_bit(golden):
    arrays = np.load(golden / "preprocess" / "preprocess_golden.npz")
    cases = [key for key in arrays.files if key.startswith(("resize/bicubic/", "resize/bilinear/"))]
    assert len(cases) == 10
    for key in cases:
        _, method, shape = key.split("/")
        height, width = map(int, shape.split("x"))
        assert np.array_equal(RESIZES[method](arrays["resize/src"], height, width), arrays[key]), key


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


def test_crop_of_a_tiny_image_is_not_empty():
    assert evaluation_image(np.full((1, 1, 3), 7, np.uint8), 224, "pad32").shape == (224, 224, 3)


def test_unknown_crop_names_the_nearest():
    with pytest.raises(ConfigError, match="'pad31'.*did you mean 'pad32'"):
        crop_window(10, 10, 224, "pad31")


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
    stored = preprocess._UPRIGHT[undo](big) if undo else big
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
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb\.jpg has 1,024 pixels \(32x32\).*decompression bomb"):
        decode_image(encoded(Image.new("RGB", (32, 32)), form), name="bomb.jpg")


def test_a_real_decompression_bomb_is_refused_before_it_is_unpacked():
    with pytest.raises(DataError, match="decompression bomb"):
        decode_image(encoded(Image.new("1", (30_000, 30_000))))


def test_training_square_holds_the_whole_image():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 200
    square, aspect = training_square(image, 20)
    assert square.shape == (20, 20, 3) and square.dtype == np.uint8
    assert aspect == 2.0
    assert square[:, :8].max() < 20 and square[:, 12:].min() > 180


def test_training_square_of_a_large_jpeg_is_decoded_small():
    x = np.linspace(0, 255, 1024, dtype=np.float32)
    image = np.repeat(np.broadcast_to(x[None, :, None], (1024, 1024, 3)), 1, 0).astype(np.uint8)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=95)
    assert decode_image(data, min_side=128).shape == (128, 128, 3)
    assert decode_image(data, min_side=129).shape == (256, 256, 3)
    assert decode_image(data, min_side=600).shape == (1024, 1024, 3)
    whole, _ = training_square(decode_image(data), 64)
    quick, _ = training_square(data, 64)
    assert np.abs(whole.astype(int) - quick).max() <= 3
