"""One affine resampling per example: resize, flip, shift, rotation, shear, zoom and crop in a single step.

Coordinates are those of TensorFlow 1's resize (align_corners and half_pixel_centers False), which the original
EfficientNet uses: output pixel j of R reads the source at `j * size / R`, counted from the first pixel. So a view
without any augmentation equals the evaluation's direct resize. What lies outside the image mirrors it, like the
resized image continued symmetrically. Images are handled as planes [N, 3, height, width], which is the layout of the
two matrix products.

Where an image shrinks, the kernel is widened (two matrix products) or the source is smoothed first (gather), by the
view's own scale along each axis, so that it does not alias.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from effnet_jax.data.resize import bicubic_taps

CUBIC_A = -0.75  # TensorFlow 1's; the common -0.5 is its half-pixel variant


def resize_on_device(images: Array, resolution: int) -> Array:
    """Resizes by TensorFlow 1's bicubic rule as two small matrix products.

    Equal to `resize.resize_bicubic` but for float32 rounding of the sums.

    Args:
      images: uint8 or float32 [N, h, w, 3].
      resolution: side of the result.

    Returns:
      float32 [N, resolution, resolution, 3].
    """
    rows, columns = (jnp.asarray(_bicubic_matrix(size, resolution)) for size in images.shape[1:3])
    planes = to_planes(images).astype(jnp.float32)
    tall = jnp.einsum("ik,nckj->ncij", rows, planes, precision=lax.Precision.HIGHEST)
    return to_pixels(jnp.einsum("jk,ncik->ncij", columns, tall, precision=lax.Precision.HIGHEST))


def _bicubic_matrix(size: int, resolution: int) -> np.ndarray:
    """The weights of TF1's bicubic resize along one axis: float32 [resolution, size]."""
    indices, weights = bicubic_taps(size, resolution)
    matrix = np.zeros((resolution, size), np.float32)
    for index, weight in zip(indices, weights, strict=True):
        np.add.at(matrix, (np.arange(resolution), index), weight)
    return matrix


def to_planes(images: Array) -> Array:
    """[N, height, width, 3] -> [N, 3, height, width]."""
    return jnp.transpose(images, (0, 3, 1, 2))


def to_pixels(planes: Array) -> Array:
    """[N, 3, height, width] -> [N, height, width, 3]."""
    return jnp.transpose(planes, (0, 2, 3, 1))


def resample_straight(images: Array, matrices: Array, resolution: int, interpolation: str, shrink: float) -> Array:
    """Resamples views without rotation and shear: two small matrix products per example.

    Args:
      images: uint8 [N, h, w, 3].
      matrices: float32 [N, 2, 3] of `geometry.view_matrix`; their off-diagonal elements are taken as 0.
      resolution: side of the views.
      interpolation: `"bilinear"` or `"bicubic"`.
      shrink: bound of the source pixels per view pixel along an axis. The kernel is widened up to it.

    Returns:
      float32 planes [N, 3, resolution, resolution].
    """
    height, width = images.shape[1:3]
    steps = jnp.arange(resolution, dtype=jnp.float32)

    def weights(scale: Array, offset: Array, size: int) -> Array:
        location = scale[:, None] * steps + offset[:, None]
        return _axis_weights(location, jnp.abs(scale), size, size / resolution, interpolation, shrink)

    rows = weights(matrices[:, 1, 1], matrices[:, 1, 2], height)
    columns = weights(matrices[:, 0, 0], matrices[:, 0, 2], width)
    planes = to_planes(images).astype(jnp.float32)
    # Full precision also on TPU: bfloat16 weights would be off by up to one level. The products are small.
    tall = jnp.einsum("nik,nckj->ncij", rows, planes, precision=lax.Precision.HIGHEST)
    return jnp.einsum("njk,ncik->ncij", columns, tall, precision=lax.Precision.HIGHEST)


def _axis_weights(location: Array, scale: Array, size: int, pitch: float, interpolation: str, shrink: float) -> Array:
    """The weight of each source position for each output position: [N, R] -> [N, R, size]."""
    location = _read_from(location, size, pitch, interpolation)
    reach = (2 if interpolation == "bicubic" else 1) * math.ceil(max(1.0, shrink))
    positions = jnp.arange(-reach, size + reach, dtype=jnp.float32)
    distance = jnp.abs(positions - location[..., None])
    if shrink > 1:
        distance = distance / jnp.clip(scale, 1.0, shrink)[:, None, None]
    weights = _kernel(distance, interpolation)
    if shrink > 1:
        weights = weights / weights.sum(-1, keepdims=True)
    # Positions beyond the edge repeat it.
    first = weights[..., : reach + 1].sum(-1, keepdims=True)
    last = weights[..., size + reach - 1 :].sum(-1, keepdims=True)
    if size == 1:
        return weights.sum(-1, keepdims=True)
    return jnp.concatenate([first, weights[..., reach + 1 : size + reach - 1], last], axis=-1)


def _read_from(location: Array, size: int, pitch: float, interpolation: str) -> Array:
    """Folds locations into the image, as if the resized image were continued by its mirror images."""
    folded = jnp.mod(location + pitch / 2, 2 * size)
    location = size - jnp.abs(folded - size) - pitch / 2
    # TF1 tabulates the cubic kernel at 1024 steps a pixel.
    return jnp.round(location * 1024) / 1024 if interpolation == "bicubic" else location


def _kernel(distance: Array, interpolation: str) -> Array:
    """The interpolation kernel at a distance >= 0."""
    if interpolation == "bilinear":
        return jnp.maximum(1 - distance, 0.0)
    a, d = CUBIC_A, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return jnp.where(d < 1, near, jnp.where(d < 2, far, 0.0))


def resample(images: Array, matrices: Array, resolution: int, interpolation: str, shrink: float) -> Array:
    """Resamples views with any affine map: a gather of 4 (bilinear) or 16 (bicubic) pixels per view pixel.

    Args:
      images: uint8 [N, h, w, 3].
      matrices: float32 [N, 2, 3] of `geometry.view_matrix`.
      resolution: side of the views.
      interpolation: `"bilinear"` or `"bicubic"`.
      shrink: bound of the source pixels per view pixel along an axis. Where it is above 1 the source is smoothed
        first, by each view's own scale, and rounded to whole levels.

    Returns:
      float32 planes [N, 3, resolution, resolution].
    """
    prepare = functools.partial(_prepared, shrink=shrink)
    size = (images.shape[1], images.shape[2])
    gather = functools.partial(_gathered, size=size, resolution=resolution, interpolation=interpolation)
    return by_platform(
        functools.partial(_in_turn, prepare, gather), functools.partial(_at_once, prepare, gather), images, matrices
    )


def by_platform(in_turn: Callable[..., Array], at_once: Callable[..., Array], *arguments: Any) -> Array:
    """Takes the examples of a batch in turn on a CPU, all at once elsewhere; the results are the same.

    One example fits into a CPU's cache, which a batch does not, and of its operations only the drawn one runs. With
    several CPU devices, as in tests of sharding, the batch is taken at once too: a loop over an axis that is sharded
    would communicate in every round.

    Args:
      in_turn: the function of the batch that loops.
      at_once: the same function without a loop.
      *arguments: of both.

    Returns:
      Their result.
    """
    cpu = in_turn if jax.device_count() == 1 else at_once
    return lax.platform_dependent(*arguments, cpu=cpu, default=at_once)


def _in_turn(prepare: Callable, gather: Callable, images: Array, matrices: Array) -> Array:
    # Two loops: in one, XLA would fuse the smoothing into each of the gathers and repeat it for every tap.
    packed = lax.map(lambda pair: prepare(*pair), (images, matrices))
    return lax.map(lambda pair: gather(*pair), (packed, matrices))


def _at_once(prepare: Callable, gather: Callable, images: Array, matrices: Array) -> Array:
    packed = lax.optimization_barrier(jax.vmap(prepare)(images, matrices))
    return jax.vmap(gather)(packed, matrices)


def _prepared(image: Array, matrix: Array, *, shrink: float) -> Array:
    """Smooths one image where a view shrinks it, and packs it: uint8 [h, w, 3] -> uint32 [h * w]."""
    planes = jnp.transpose(image, (2, 0, 1))
    if shrink > 1:
        planes = _smoothed(planes, jnp.sqrt(jnp.sum(matrix[:, :2] ** 2, axis=-1)), shrink)
    return pack(planes).reshape(-1)


def _gathered(packed: Array, matrix: Array, *, size: tuple[int, int], resolution: int, interpolation: str) -> Array:
    """Interpolates one view.

    Args:
      packed: the source, uint32 [h * w].
      matrix: float32 [2, 3].
      size: (h, w).
      resolution: side of the view.
      interpolation: `"bilinear"` or `"bicubic"`.

    Returns:
      float32 planes [3, R, R].
    """
    height, width = size
    steps = jnp.arange(resolution, dtype=jnp.float32)
    offsets = (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2)

    def base_and_rest(row: Array, size: int) -> tuple[Array, Array]:
        location = row[0] * steps[None, :] + row[1] * steps[:, None] + row[2]  # [R, R]
        location = _read_from(location, size, size / resolution, interpolation)
        base = jnp.floor(location)
        return base.astype(jnp.int32), location - base

    (x, x_rest), (y, y_rest) = base_and_rest(matrix[0], width), base_and_rest(matrix[1], height)
    columns = [jnp.clip(x + k, 0, width - 1) for k in offsets]
    rows = [jnp.clip(y + k, 0, height - 1) * width for k in offsets]
    view = jnp.zeros((), jnp.float32)
    for row, y_offset in zip(rows, offsets, strict=True):
        line = jnp.zeros((), jnp.float32)
        for column, x_offset in zip(columns, offsets, strict=True):
            tap = packed.at[row + column].get(mode="promise_in_bounds")
            line += unpack(tap).astype(jnp.float32) * _kernel(jnp.abs(x_offset - x_rest), interpolation)
        view += line * _kernel(jnp.abs(y_offset - y_rest), interpolation)
    return view


def _smoothed(planes: Array, scales: Array, shrink: float) -> Array:
    """Smooths an image along each axis by a triangle as wide as a view's pixel (nothing where that is one pixel).

    Args:
      planes: uint8 [3, h, w].
      scales: source pixels per view pixel along x and y, float32 [2].
      shrink: bound of the scales.

    Returns:
      uint8 [3, h, w].
    """
    reach = math.ceil(shrink) - 1
    offsets = jnp.arange(-reach, reach + 1)
    triangle = jnp.maximum(1 - jnp.abs(offsets) / jnp.clip(scales, 1.0, shrink)[:, None], 0.0)
    triangle = triangle / triangle.sum(-1, keepdims=True)  # [2, taps]
    smooth = planes.astype(jnp.float32)
    for axis, weights in ((2, triangle[0]), (1, triangle[1])):
        width = [(0, 0)] * 3
        width[axis] = (reach, reach)
        padded = jnp.pad(smooth, width, mode="edge")
        slices = [lax.slice_in_dim(padded, k, k + planes.shape[axis], axis=axis) for k in range(2 * reach + 1)]
        smooth = sum((part * weight for part, weight in zip(slices, weights, strict=True)), jnp.zeros(()))
    return jnp.round(smooth).astype(jnp.uint8)


def pack(planes: Array) -> Array:
    """Packs the channels of uint8 [3, height, width] into uint32 [height, width]: one gather fetches all three."""
    wide = planes.astype(jnp.uint32)
    return wide[0] | (wide[1] << 8) | (wide[2] << 16)


def unpack(packed: Array) -> Array:
    """The reverse of `pack`: uint32 [height, width] -> int32 [3, height, width]."""
    return ((packed[None] >> jnp.array([0, 8, 16], jnp.uint32)[:, None, None]) & 255).astype(jnp.int32)
