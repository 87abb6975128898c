"""The affine resampling against TensorFlow's rule, SciPy and Pillow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from effnet_jax.choices import INTERPOLATIONS
from effnet_jax.data import affine
from effnet_jax.data.affine import resample, resample_straight, resize_on_device
from effnet_jax.data.geometry import draw_window, view_matrix
from effnet_jax.data.resize import resize_bicubic

WHOLE = jnp.array([0.0, 0.0, 1.0, 1.0])


def smooth_image(height, width, seed=0):
    """An image without steps, so that interpolations can be compared: uint8 [height, width, 3]."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    blurred = ndimage.gaussian_filter(noise, (2.0, 2.0, 0), mode="mirror")
    return np.uint8(np.clip(128 + 90 * blurred / np.abs(blurred).max(), 0, 255))


def matrix(size, resolution, *, window=WHOLE, flip=False, shift=(0, 0), rotation=0.0, shear=(0, 0), zoom=1.0):
    return view_matrix(
        jnp.asarray(window),
        size=size,
        resolution=resolution,
        flip=jnp.array(flip),
        shift=jnp.array(shift, jnp.float32),
        rotation=jnp.float32(np.deg2rad(rotation)),
        shear=jnp.asarray(np.deg2rad(shear), jnp.float32),
        zoom=jnp.float32(zoom),
    )


def views(image, matrices, resolution, *, function=resample, interpolation="bicubic", shrink=1.0):
    """[R, R, 3] of each matrix."""
    stack = jnp.stack([jnp.asarray(image)] * len(matrices))
    planes = jax.jit(function, static_argnums=(2, 3, 4))(stack, jnp.stack(matrices), resolution, interpolation, shrink)
    return np.asarray(affine.to_pixels(planes))


@pytest.mark.parametrize(("size", "resolution"), [((32, 32), 48), ((28, 28), 28), ((40, 24), 32), ((50, 64), 24)])
def test_resize_on_device_is_tensorflows_bicubic(size, resolution):
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    expected = np.stack([resize_bicubic(image, resolution, resolution) for image in images])
    assert np.abs(np.asarray(resize_on_device(images, resolution)) - expected).max() < 2e-4


@pytest.mark.parametrize("function", [resample, resample_straight])
def test_a_view_of_the_whole_image_is_tensorflows_resize_and_its_mirror_image(function):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    expected = resize_bicubic(image, 48, 48)
    plain, flipped = views(
        image, [matrix((32, 32), 48), matrix((32, 32), 48, flip=True)], 48, function=function, shrink=32 / 48
    )
    assert np.abs(plain - expected).max() < 2e-3
    assert np.abs(flipped - expected[:, ::-1]).max() < 2e-3


@pytest.mark.parametrize("function", [resample, resample_straight])
def test_a_shift_moves_the_content_right_and_down_and_mirrors_at_the_edge(function):
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    whole = resize_bicubic(image, 40, 40)
    (moved,) = views(image, [matrix((20, 20), 40, shift=(5 / 40, 3 / 40))], 40, function=function)
    expected = np.pad(whole, ((3, 0), (5, 0), (0, 0)), mode="symmetric")[:40, :40]
    assert np.abs(moved - expected).max() < 2e-3


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_two_ways_of_resampling_agree_where_nothing_is_rotated(interpolation):
    image = smooth_image(32, 32)
    window = (0.1, 0.2, 0.8, 0.6)
    matrices = [
        matrix((32, 32), 40, window=window, flip=True, zoom=1.2),
        matrix((32, 32), 40, shift=(0.3, -0.2), zoom=0.9),
    ]
    one, other = (
        views(image, matrices, 40, function=function, interpolation=interpolation)
        for function in (resample, resample_straight)
    )
    assert np.abs(one - other).max() < 0.01


@pytest.mark.parametrize(("interpolation", "order", "tolerance"), [("bilinear", 1, 0.01), ("bicubic", 3, 3.0)])
def test_resampling_equals_scipys_affine_transform(interpolation, order, tolerance):
    # SciPy's cubic spline is another kernel, near on a smooth image; bilinear is the same one.
    image = smooth_image(48, 48)
    turn = matrix((48, 48), 32, rotation=25, shear=(8, -4), zoom=1.6)
    (view,) = views(image, [turn], 32, interpolation=interpolation)
    (a, b, x), (c, d, y) = np.asarray(turn)
    for channel in range(3):
        expected = ndimage.affine_transform(
            image[..., channel].astype(float), [[d, c], [b, a]], (y, x), output_shape=(32, 32), order=order
        )
        assert np.abs(view[..., channel] - expected).max() < tolerance


def test_resampling_equals_pillows_affine_transform():
    image = smooth_image(48, 48, seed=1)
    turn = np.asarray(matrix((48, 48), 32, rotation=-40, zoom=1.7))
    (view,) = views(image, [jnp.asarray(turn)], 32, interpolation="bilinear")
    # Pillow counts from pixel corners: its point (x + 0.5) is pixel x here.
    corners = turn.copy()
    corners[:, 2] += 0.5 - turn[:, :2].sum(1) * 0.5
    expected = Image.fromarray(image).transform(
        (32, 32), Image.Transform.AFFINE, corners.reshape(-1), Image.Resampling.BILINEAR
    )
    assert np.abs(view - np.asarray(expected, np.float32)).max() <= 1.0


def test_a_rotation_turns_counter_clockwise_and_a_zoom_magnifies():
    image = np.zeros((41, 41, 3), np.uint8)
    image[18:23, 30:35] = 255  # right of the centre
    turned, magnified = views(
        image, [matrix((41, 41), 41, rotation=90), matrix((41, 41), 41, zoom=1.2)], 41, interpolation="bilinear"
    )
    assert np.abs(np.array(ndimage.center_of_mass(turned[..., 0])) - (8, 20)).max() < 0.1
    assert np.abs(np.array(ndimage.center_of_mass(magnified[..., 0])) - (20, 34.4)).max() < 0.1
    assert magnified.sum() == pytest.approx(1.2**2 * image.sum(), rel=0.01)


@pytest.mark.parametrize("function", [resample, resample_straight])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_stripes_finer_than_the_view_turn_grey_instead_of_aliasing(function, interpolation):
    image = np.zeros((96, 96, 3), np.uint8)
    image[:, ::2] = 255
    (view,) = views(image, [matrix((96, 96), 30)], 30, function=function, interpolation=interpolation, shrink=96 / 30)
    assert np.abs(view[2:-2, 2:-2] - 127.5).max() < 26
    (aliased,) = views(image, [matrix((96, 96), 30)], 30, function=function, interpolation=interpolation)
    assert np.abs(aliased - 127.5).max() > 100


def test_shrinking_equals_pillows_antialiased_resize():
    image = smooth_image(96, 96, seed=2)
    (view,) = views(image, [matrix((96, 96), 32)], 32, function=resample_straight, interpolation="bilinear", shrink=3.0)
    # Pillow's pixels lie one source pixel (half of 3 - 1) further; move the source by as much.
    shifted = np.pad(image, ((1, 0), (1, 0), (0, 0)), mode="edge")[:96, :96]
    expected = np.asarray(Image.fromarray(shifted).resize((32, 32), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(view - expected)[1:-1, 1:-1].max() < 1.0


def test_taking_images_in_turn_equals_taking_them_at_once():
    images = jnp.stack([jnp.asarray(smooth_image(40, 40, seed)) for seed in range(3)])
    matrices = jnp.stack([matrix((40, 40), 24, rotation=angle, zoom=0.9) for angle in (-30, 5, 70)])
    prepare = functools.partial(affine._prepared, shrink=2.0)
    gather = functools.partial(affine._gathered, size=(40, 40), resolution=24, interpolation="bicubic")
    one, other = (
        jax.jit(functools.partial(function, prepare, gather))(images, matrices)
        for function in (affine._in_turn, affine._at_once)
    )
    assert np.abs(np.asarray(one) - np.asarray(other)).max() < 1e-2


def test_the_window_undoes_the_squeeze_of_a_photograph():
    # A photograph twice as wide as high: its centre square is half the squeezed width.
    assert np.allclose(draw_window(jax.random.key(0), jnp.float32(2.0), None), (0.25, 0, 0.5, 1))
    assert np.allclose(draw_window(jax.random.key(0), jnp.float32(0.5), None), (0, 0.25, 1, 0.5))


def test_random_windows_keep_within_the_photograph_and_their_bounds():
    keys = jax.random.split(jax.random.key(0), 2000)
    aspect = 1.5
    left, top, width, height = np.asarray(
        jax.vmap(lambda key: draw_window(key, jnp.float32(aspect), (0.2, 0.8)))(keys)
    ).T
    assert left.min() >= 0 and top.min() >= 0 and (left + width).max() <= 1 + 1e-6 and (top + height).max() <= 1 + 1e-6
    area, ratio = width * height, width * aspect / height
    assert 0.2 - 1e-4 <= area.min() < 0.23 and 0.7 < area.max() <= 0.8 + 1e-4
    assert 0.75 - 1e-4 <= ratio.min() < 0.78 and 1.3 < ratio.max() <= 4 / 3 + 1e-4
    assert abs((left / (1 - width)).mean() - 0.5) < 0.05


def test_a_window_that_cannot_fit_becomes_the_centre_square():
    # No window of this area and at most 4:3 fits into a photograph ten times as wide as high.
    window = draw_window(jax.random.key(0), jnp.float32(10.0), (0.9, 1.0))
    assert np.allclose(window, (0.45, 0, 0.1, 1))
