"""Colour jitter, cutout, erasing, mixup and cutmix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from effnet_jax.data import mix

SIDE = 24
PLANES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 3, SIDE, SIDE)), jnp.float32)
TARGETS = jnp.eye(8)
MIX = jax.jit(mix.mix, static_argnums=(3, 4))
KEYS = jax.random.split(jax.random.key(0), 8)


@pytest.mark.parametrize(
    ("name", "enhancer"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
@pytest.mark.parametrize("factor", [0.6, 1.3])
def test_colour_changes_agree_with_pillow(name, enhancer, factor):
    picture = np.uint8(np.asarray(PLANES[0]).transpose(1, 2, 0))
    expected = np.asarray(enhancer(Image.fromarray(picture)).enhance(factor), np.float32)
    factors = {"brightness": None, "contrast": None, "saturation": None} | {name: jnp.float32(factor)}
    result = np.asarray(mix.adjust_colour(PLANES[0], **factors)).transpose(1, 2, 0)
    assert np.abs(result - expected).max() <= 1.5  # Pillow rounds the grey and the result to whole levels


def test_colour_jitter_draws_factors_within_its_bounds():
    flat = jnp.full((3, 2, 2), 100.0)
    keys = jax.random.split(jax.random.key(1), 500)
    levels = jax.jit(jax.vmap(lambda key: mix.jitter_colour(key, flat, 0.3, 0.0, 0.0)[0, 0, 0]))(keys)
    assert 70 <= levels.min() < 75 and 125 < levels.max() <= 130


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0, 60.0])
def test_weights_have_the_beta_distribution(alpha):
    draws = jax.jit(jax.vmap(lambda key: mix.draw_beta(key, alpha)))(jax.random.split(jax.random.key(6), 4000))
    lower = np.asarray(draws, np.float64)[draws < 0.5]  # near 1, float32 has too few numbers for a small alpha
    assert len(lower) / len(draws) == pytest.approx(0.5, abs=0.03)
    assert stats.kstest(lower, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 0.01
    quantiles = mix._lower_quantiles(alpha) ** (1 / min(alpha, 1.0))
    expected = stats.beta(alpha, alpha).ppf(np.linspace(0, 0.5, len(quantiles)))
    assert np.abs(quantiles - expected)[1:].max() < 1e-4


def test_mixup_keeps_the_larger_share_and_mixes_targets_alike():
    planes, targets = MIX(KEYS, PLANES, TARGETS, 0.4, 0.0)
    own = np.diag(targets)
    assert own.min() >= 0.5 and len(set(own.tolist())) == 8
    assert np.allclose(np.asarray(targets)[np.arange(8), np.arange(8) ^ 1], 1 - own, atol=1e-6)
    weights = own[:, None, None, None]
    assert np.allclose(planes, weights * PLANES + (1 - weights) * PLANES[np.arange(8) ^ 1], atol=1e-3)


def test_cutmix_pastes_one_box_whose_area_is_the_partners_share():
    planes, targets = (np.asarray(array) for array in MIX(KEYS, PLANES, TARGETS, 0.0, 1.0))
    pasted = 0
    for index in range(8):
        own, partner = np.asarray(PLANES[index]), np.asarray(PLANES[index ^ 1])
        box = np.all(planes[index] == partner, axis=0) & np.any(own != partner, axis=0)
        assert np.array_equal(planes[index][:, ~box], own[:, ~box])
        assert targets[index, index ^ 1] == pytest.approx(box.mean(), abs=1e-6)
        assert targets[index].sum() == pytest.approx(1, abs=1e-6)
        rows, columns = np.nonzero(box)
        if len(rows):
            assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == len(rows)  # a full rectangle
            pasted += 1
    assert pasted >= 4


def test_with_both_each_example_draws_one():
    keys = jax.random.split(jax.random.key(2), 200)
    planes = jnp.arange(200.0)[:, None, None, None] * jnp.ones((1, 3, SIDE, SIDE))
    mixed, _ = MIX(keys, planes, jnp.zeros((200, 2)), 5.0, 1.0)
    levels = np.array([len(np.unique(view[0])) for view in np.asarray(mixed)])
    whole = np.array([view[0].flat[0] == index for index, view in enumerate(np.asarray(mixed))])
    assert 0.3 < np.mean((levels == 1) & ~whole) < 0.7  # mixup: one level, not one's own


def test_erasing_fills_a_rectangle_of_bounded_area_as_often_as_asked():
    planes = jnp.full((3, 60, 60), 300.0)
    keys = jax.random.split(jax.random.key(3), 300)
    erased = np.asarray(jax.jit(jax.vmap(lambda key: mix.erase(key, planes, 0.4)))(keys))
    areas = (erased[:, 0] != 300).mean((1, 2))
    assert np.mean(areas > 0) == pytest.approx(0.4, abs=0.1)
    assert areas[areas > 0].min() > 0.01 and areas.max() < 0.36
    first = erased[np.argmax(areas > 0)]
    assert len(np.unique(first.reshape(3, -1), axis=1).T) == 2  # one colour


def test_cutout_leaves_a_grey_square_that_may_reach_over_the_edge():
    planes = jnp.zeros((3, 40, 40))
    keys = jax.random.split(jax.random.key(4), 200)
    cut = np.asarray(jax.jit(jax.vmap(lambda key: mix.cut_out(key, planes, 10)))(keys))
    assert set(np.unique(cut)) == {0.0, 128.0}
    areas = (cut[:, 0] == 128).sum((1, 2))
    assert areas.max() == 100 and areas.min() < 100
