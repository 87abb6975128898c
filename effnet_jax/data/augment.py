"""Augmentation on the device: a pure, jittable function of a batch and one random key per example.

It runs on a device's share of a batch, or a piece of it; each example's draws come from its own key alone, so that a
view depends on (seed, step, example) and on nothing else. Order: the affine resampling to the training resolution; one
of AutoAugment, RandAugment and TrivialAugment (or before it, at the source's size); colour jitter; cutout; random
erasing; mixup and cutmix; label smoothing.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from effnet_jax.data import draws, mix, operations, policies
from effnet_jax.data.affine import (
    resample,
    resample_straight,
    resize_on_device,
    to_pixels,
    to_planes,
)
from effnet_jax.data.augment_settings import AugmentSettings, read_settings
from effnet_jax.data.geometry import draw_window, view_matrix

__all__ = ["make_augment", "read_settings", "resize_on_device"]

Augment = Callable[[Mapping[str, Array], Array], tuple[Array, Array]]

# What an example's key is folded with for each use: never renumbered, so that views stay what they were.
_GEOMETRY, _POLICY, _COLOUR, _CUTOUT, _ERASE, _MIX = range(6)


def make_augment(settings: Mapping[str, Any], *, resolution: int, num_classes: int) -> Augment:
    """Makes the augmentation of a phase.

    Args:
      settings: name -> value, see `AugmentSettings`; an empty mapping only resizes.
      resolution: side of the views.
      num_classes: of the targets.

    Returns:
      A function (batch, keys) -> (images float32 [N, R, R, 3] in 0..255, targets float32 [N, classes]). The batch
      holds `image` uint8 [N, h, w, 3], `aspect` float32 [N] (width / height before the image was squeezed to this
      shape; 1 for an image as it is) and `label` int32 [N]; keys are N random keys. Bicubic interpolation may
      overshoot 0..255 a little, as in evaluation.

    Raises:
      ConfigError: settings that cannot work, see `read_settings`.
    """
    return functools.partial(_augment, settings=read_settings(settings), resolution=resolution, classes=num_classes)


def soft_targets(labels: Array, classes: int, smoothing: float = 0.0) -> Array:
    """Targets of the loss: one-hot, with `smoothing` of it spread over all classes: [N] → [N, classes]."""
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32) * (1 - smoothing) + smoothing / classes


def _augment(
    batch: Mapping[str, Array], keys: Array, *, settings: AugmentSettings, resolution: int, classes: int
) -> tuple[Array, Array]:
    images = batch["image"]
    if images.dtype != jnp.uint8:
        raise TypeError(f"augmentation takes uint8 images, not {images.dtype}")

    def keys_for(purpose: int) -> Array:
        return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)

    policy_at = settings.policy_at if settings.policies else ""
    if policy_at == "source":
        images = to_pixels(_with_policy(keys_for(_POLICY), to_planes(images), settings))
    planes = _views(keys_for(_GEOMETRY), images, batch["aspect"], settings, resolution)
    if policy_at == "resolution":
        # As the original: clipped, then cut to whole levels.
        whole = jnp.clip(planes, 0, 255).astype(jnp.uint8)
        planes = _with_policy(keys_for(_POLICY), whole, settings).astype(jnp.float32)
    if settings.brightness or settings.contrast or settings.saturation:
        amounts = (settings.brightness, settings.contrast, settings.saturation)
        planes = jax.vmap(lambda key, view: mix.jitter_colour(key, view, *amounts))(keys_for(_COLOUR), planes)
    if settings.cutout:
        planes = jax.vmap(functools.partial(mix.cut_out, side=settings.cutout))(keys_for(_CUTOUT), planes)
    if settings.erase:
        planes = jax.vmap(functools.partial(mix.erase, probability=settings.erase))(keys_for(_ERASE), planes)
    targets = soft_targets(batch["label"], classes, settings.label_smoothing)
    if settings.mixup or settings.cutmix:
        planes, targets = mix.mix(keys_for(_MIX), planes, targets, settings.mixup, settings.cutmix)
    return to_pixels(planes), targets


def _views(keys: Array, images: Array, aspects: Array, settings: AugmentSettings, resolution: int) -> Array:
    """Draws each example's affine map and resamples: float32 planes [N, 3, R, R]."""
    low, high = settings.zoom_bounds
    size = (images.shape[1], images.shape[2])

    def draw(key: Array, aspect: Array) -> Array:
        window_key, flip_key, shift_key, rotation_key, shear_key, zoom_key = jax.random.split(key, 6)
        return view_matrix(
            draw_window(window_key, aspect, settings.crop),
            size=size,
            resolution=resolution,
            flip=jax.random.bernoulli(flip_key) & settings.flip,
            shift=jax.random.uniform(shift_key, (2,), minval=-1.0) * settings.shift,
            rotation=jax.random.uniform(rotation_key, minval=-1.0) * np.deg2rad(settings.rotate),
            shear=jax.random.uniform(shear_key, (2,), minval=-1.0) * np.deg2rad(settings.shear),
            zoom=jnp.exp(jax.random.uniform(zoom_key, minval=math.log(low), maxval=math.log(high))),
        )

    matrices = jax.vmap(draw)(keys, aspects)
    # A window never shows more than the whole image, so that this bounds the source pixels per view pixel.
    shrink = max(size) / resolution / low / math.cos(math.radians(settings.shear))
    if settings.straight:
        return resample_straight(images, matrices, resolution, settings.interpolation, shrink)
    return resample(images, matrices, resolution, settings.interpolation, shrink)


def _with_policy(keys: Array, planes: Array, settings: AugmentSettings) -> Array:
    """Applies AutoAugment, RandAugment or TrivialAugment: uint8 planes [N, 3, height, width] -> the same."""
    size = (planes.shape[2], planes.shape[3])
    scale = policies.policy_scale(settings.policy, planes.shape[2])

    def draw(key: Array) -> list[operations.Drawn]:
        if settings.policy:
            return draws.draw_policy(key, size, policies.POLICIES[settings.policy], scale)
        if settings.trivialaugment:
            return draws.draw_trivialaugment(key, size)
        assert settings.randaugment
        layers, magnitude = settings.randaugment
        return draws.draw_randaugment(key, size, layers, magnitude, scale)

    return operations.apply_to_batch(planes, jax.vmap(draw)(keys))
