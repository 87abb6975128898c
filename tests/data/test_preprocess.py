"""Cropping and resizing against what the original code and TensorFlow gave."""

import json
import tracemalloc

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from effnet_jax.data.decode import decode_image
from effnet_jax.data.preprocess import crop_window, evaluation_image, training_square
from effnet_jax.data.resize import bicubic_taps, resize_bicubic, resize_bilinear
from effnet_jax.errors import ConfigError

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


def test_crop_of_a_tiny_image_is_not_empty():
    assert evaluation_image(np.full((1, 1, 3), 7, np.uint8), 224, "pad32").shape == (224, 224, 3)


def test_unknown_crop_names_the_nearest():
    with pytest.raises(ConfigError, match="'pad31'.*did you mean 'pad32'"):
        crop_window(10, 10, 224, "pad31")


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


def in_order_of_the_taps(image, size):
    """The first axis resized, as TensorFlow 1 sums: in float32, a tap after the other."""
    indices, weights = bicubic_taps(len(image), size)
    return sum(image[index] * weight[:, None, None] for index, weight in zip(indices, weights, strict=True))


@pytest.mark.parametrize("shape", [(1500, 1100), (1, 400_000), (300_000, 1)])
def test_a_large_image_takes_the_memory_of_the_pixels_that_count(shape):
    """A server decodes many at a time; a file of a few kilobytes may be a million pixels wide."""
    larger = np.random.default_rng(0).integers(0, 256, (shape[0] + 1, shape[1] + 1, 3), np.uint8)
    image = larger[1:, 1:]  # as a crop is
    tracemalloc.start()
    resized = resize_bicubic(image, 32, 32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6, peak
    if shape[0] > 1 and shape[1] > 1:
        tall = in_order_of_the_taps(image.astype(np.float32), 32)
        np.testing.assert_array_equal(resized, in_order_of_the_taps(tall.transpose(1, 0, 2), 32).transpose(1, 0, 2))
