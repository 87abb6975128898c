"""TensorFlow 1's bicubic resize of large photographs, of which only the rows are looked at that taps fall on."""

import tracemalloc

import numpy as np
import pytest

from effnet_jax.data.resize import bicubic_taps, resize_bicubic


def plainly(image, height, width):
    """The four taps of each axis, y first, over the whole image at once."""
    down, across = bicubic_taps(image.shape[0], height), bicubic_taps(image.shape[1], width)
    image = image.astype(np.float32)
    first, *others = [image[index] * weight[:, None, None] for index, weight in zip(*down, strict=True)]
    tall = sum(others, start=first)
    first, *others = [tall[:, index] * weight[None, :, None] for index, weight in zip(*across, strict=True)]
    return sum(others, start=first)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    ("before", "after"),
    [((5, 7), (3, 2)), ((1, 1), (4, 4)), ((1, 30_000), (5, 6)), ((30_000, 1), (700, 3)), ((700, 1100), (300, 224))],
)
def test_sizes_that_take_one_strip_and_many(before, after, dtype):
    image = np.random.default_rng(0).integers(0, 256, (*before, 3)).astype(dtype)
    assert np.array_equal(resize_bicubic(image, *after), plainly(image, *after))


@pytest.mark.parametrize("shape", [(3000, 4000), (1, 400_000), (300_000, 1)])
def test_memory_is_that_of_the_pixels_that_count(shape):
    """A server decodes many at a time, and a file of a few kilobytes may be a million pixels wide."""
    image = np.zeros((shape[0] + 1, shape[1] + 1, 3), np.uint8)[1:, 1:]  # as a crop is
    tracemalloc.start()
    try:
        resize_bicubic(image, 32, 32)
        assert tracemalloc.get_traced_memory()[1] < 2e6  # 144e6 and more as it is
    finally:
        tracemalloc.stop()
