"""AutoAugment's operations on whole levels (uint8), pixel by pixel equal to the original code's.

The original is `autoaugment.py` in tensorflow/tpu, models/official/efficientnet, as TensorFlow executes it: with its
quirks (Contrast blends with the number of pixels, thresholds and shifts wrap as uint8). All functions work on planes
uint8 [3, height, width] of one example.

A batch draws a different operation for each example. On CPU the examples are taken in turn and only the drawn
operation runs. Accelerators run each kind of operation once on the whole batch and select: one gather (all
geometric operations are one projective map), one histogram, and one fused pass over the rest. The results are equal.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from effnet_jax.data.affine import by_platform, pack, unpack
from effnet_jax.data.policies import IDENTITY, OPERATIONS, SIGNED

FILL = 128  # what lies outside, and what Cutout leaves


class Drawn(NamedTuple):
    """One operation drawn for an example.

    Attributes:
      kind: index into `KINDS`, int32 [].
      argument: what `prepare` made of the level, float32 [].
      matrix: of a geometric operation, float32 [6].
      centre: of Cutout's square, (y, x) as fractions of the view, float32 [2].
    """

    kind: Array
    argument: Array
    matrix: Array
    centre: Array


def prepare(operation: str, argument: float, height: int, width: int) -> tuple[int, np.float32, np.ndarray]:
    """Translates an operation and its argument to what the device computes with.

    Args:
      operation: one of `OPERATIONS`, or "Identity".
      argument: of `policies.level_argument`, with its sign.
      height: of the images in pixels.
      width: of the images in pixels.

    Returns:
      The kind (index into `KINDS`), the device's argument, and the matrix float32 [6] of a geometric operation.
    """
    matrix = np.array([1, 0, 0, 0, 1, 0], np.float32)
    value = np.float32(argument)
    match operation:
        case "Posterize":
            # The shift wraps as uint8; shifts from 8 on keep the top bit.
            value = np.float32(min((8 - int(argument)) % 256, 7))
        case "Solarize":
            value = np.float32(int(argument) % 256)
        case "Contrast":
            # The original blends with the mean of the histogram's counts, not of the levels.
            matrix[2] = int(min(255.0, height * width / 256))
        case "Rotate":
            angle = np.float32(np.deg2rad(argument))
            cos, sin = np.cos(angle), np.sin(angle)
            right, bottom = np.float32(width - 1), np.float32(height - 1)
            x0 = (right - (cos * right - sin * bottom)) / np.float32(2)
            y0 = (bottom - (sin * right + cos * bottom)) / np.float32(2)
            matrix[:] = cos, -sin, x0, sin, cos, y0
        case "ShearX":
            matrix[1] = value
        case "ShearY":
            matrix[3] = value
        case "TranslateX":
            matrix[2] = value
        case "TranslateY":
            matrix[5] = value
    return KIND_OF[operation], value, matrix


def _exact(product: Array) -> Array:
    """Keeps a product from being fused with the sum that follows, whose rounding would differ from the original's."""
    return jnp.clip(product, -1e6, 1e6)


def _whole(values: Array) -> Array:
    """float32 -> uint8: clipped, then cut towards zero."""
    return jnp.clip(values, 0, 255).astype(jnp.int32).astype(jnp.uint8)


def _blend(first: Array | float, second: Array, factor: Array) -> Array:
    """From `first` (factor 0) to `second` (factor 1) and beyond."""
    b = second.astype(jnp.float32)
    a = jnp.broadcast_to(jnp.asarray(first, jnp.float32), b.shape)
    blended = _whole(a + _exact(factor * (b - a)))
    return jnp.where(factor == 0, a.astype(jnp.uint8), jnp.where(factor == 1, second, blended))


def _identity(planes: Array, drawn: Drawn) -> Array:
    return planes


def _auto_contrast(planes: Array, drawn: Drawn) -> Array:
    low = planes.min((1, 2), keepdims=True).astype(jnp.float32)
    high = planes.max((1, 2), keepdims=True).astype(jnp.float32)
    scale = 255.0 / jnp.maximum(high - low, 1.0)
    stretched = _exact(planes.astype(jnp.float32) * scale) + _exact(-low * scale)
    return jnp.where(high > low, _whole(stretched), planes)


def _equalize(planes: Array, drawn: Drawn) -> Array:
    flat = planes.reshape(3, -1).astype(jnp.int32)
    counts = _histograms(flat)  # [3, 256]
    last = jnp.take_along_axis(counts, flat.max(1, keepdims=True), axis=1)
    step = (flat.shape[1] - last) // 255  # [3, 1]
    sums = (jnp.cumsum(counts, axis=1) + step // 2) // jnp.maximum(step, 1)
    table = jnp.clip(jnp.concatenate([jnp.zeros((3, 1), jnp.int32), sums[:, :-1]], axis=1), 0, 255)
    table = jnp.where(step == 0, jnp.arange(256), table)
    return _looked_up(table, flat).astype(jnp.uint8).reshape(planes.shape)


def _invert(planes: Array, drawn: Drawn) -> Array:
    return 255 - planes


def _posterize(planes: Array, drawn: Drawn) -> Array:
    shift = drawn.argument.astype(jnp.uint8)
    return (planes >> shift) << shift


def _solarize(planes: Array, drawn: Drawn) -> Array:
    return jnp.where(planes < drawn.argument.astype(jnp.uint8), planes, 255 - planes)


def _solarize_add(planes: Array, drawn: Drawn) -> Array:
    return jnp.where(planes < 128, _whole(planes.astype(jnp.float32) + drawn.argument), planes)


def _color(planes: Array, drawn: Drawn) -> Array:
    share = planes.astype(jnp.float32) * np.float32(1 / 255)
    red, green, blue = (_exact(share[c] * np.float32(w)) for c, w in enumerate((0.2989, 0.5870, 0.1140)))
    grey = ((red + green + blue) * np.float32(255.5)).astype(jnp.int32)
    return _blend(grey[None].astype(jnp.float32), planes, drawn.argument)


def _contrast(planes: Array, drawn: Drawn) -> Array:
    return _blend(drawn.matrix[2], planes, drawn.argument)


def _brightness(planes: Array, drawn: Drawn) -> Array:
    return _blend(0.0, planes, drawn.argument)


def _sharpness(planes: Array, drawn: Drawn) -> Array:
    _, height, width = planes.shape
    light, heavy = (planes.astype(jnp.float32) * np.float32(weight / 13) for weight in (1, 5))
    total = jnp.zeros((), jnp.float32)
    for y in range(3):
        for x in range(3):
            source = heavy if (y, x) == (1, 1) else light
            total = total + _exact(source[:, y : y + height - 2, x : x + width - 2])
    inner = _blend(_whole(total).astype(jnp.float32), planes[:, 1:-1, 1:-1], drawn.argument)
    return planes.at[:, 1:-1, 1:-1].set(inner)


def _geometric(planes: Array, drawn: Drawn) -> Array:
    _, height, width = planes.shape
    x = jnp.arange(width, dtype=jnp.float32)[None, :]
    y = jnp.arange(height, dtype=jnp.float32)[:, None]
    m = drawn.matrix
    column = _nearest(_exact(m[0] * x) + _exact(m[1] * y) + m[2])
    row = _nearest(_exact(m[3] * x) + _exact(m[4] * y) + m[5])
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = jnp.where(inside, row * width + column, 0)
    moved = pack(planes).reshape(-1).at[index].get(mode="promise_in_bounds")
    grey = FILL * 0x010101
    return unpack(jnp.where(inside, moved, jnp.uint32(grey))).astype(jnp.uint8)


def _nearest(location: Array) -> Array:
    """Rounds half away from zero."""
    whole = jnp.trunc(location)
    away = jnp.abs(location - whole) >= 0.5
    return (whole + jnp.where(away, jnp.sign(location), 0.0)).astype(jnp.int32)


def _cutout(planes: Array, drawn: Drawn) -> Array:
    _, height, width = planes.shape
    pad = drawn.argument
    cy, cx = jnp.floor(drawn.centre[0] * height), jnp.floor(drawn.centre[1] * width)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    hidden = (rows >= cy - pad) & (rows < cy + pad) & (columns >= cx - pad) & (columns < cx + pad)
    return jnp.where(hidden, jnp.uint8(FILL), planes)


# Kind -> its function. The geometric operations are one kind.
_FUNCTIONS: dict[str, Callable[[Array, Drawn], Array]] = {
    IDENTITY: _identity,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "Cutout": _cutout,
    "Geometric": _geometric,
}
KINDS = tuple(_FUNCTIONS)
KIND_OF = {name: KINDS.index("Geometric" if name in SIGNED else name) for name in (IDENTITY, *OPERATIONS)}


def _histograms(levels: Array) -> Array:
    """Counts each level in each channel: int32 [3, pixels] -> int32 [3, 256]."""
    return lax.platform_dependent(levels, cpu=_histograms_by_scatter, default=_histograms_by_product)


def _histograms_by_scatter(levels: Array) -> Array:
    return jnp.zeros((3, 256), jnp.int32).at[jnp.arange(3)[:, None], levels].add(1, mode="promise_in_bounds")


def _histograms_by_product(levels: Array) -> Array:
    # Scattering is slow on TPU; the upper and lower four bits as one-hot vectors make it a matrix product.
    counts = jnp.einsum("cph,cpl->chl", *_one_hot_digits(levels), preferred_element_type=jnp.float32)
    return counts.reshape(3, 256).astype(jnp.int32)


def _looked_up(table: Array, levels: Array) -> Array:
    """Replaces levels by a table: int32 [3, 256], [3, pixels] -> int32 [3, pixels]."""
    return lax.platform_dependent(table, levels, tpu=_looked_up_by_product, default=_looked_up_by_gather)


def _looked_up_by_gather(table: Array, levels: Array) -> Array:
    return jnp.take_along_axis(table, levels, axis=1, mode="promise_in_bounds")


def _looked_up_by_product(table: Array, levels: Array) -> Array:
    upper, lower = _one_hot_digits(levels)
    digits = table.reshape(3, 16, 16).astype(upper.dtype)
    rows = jnp.einsum("cph,chl->cpl", upper, digits, preferred_element_type=jnp.float32)
    return (rows * lower).sum(-1).astype(jnp.int32)


def _one_hot_digits(levels: Array) -> tuple[Array, Array]:
    """The upper and lower four bits as one-hot vectors [..., 16]; bfloat16 holds all whole numbers up to 256."""
    digits = jnp.arange(16)
    upper, lower = (levels >> 4)[..., None] == digits, (levels & 15)[..., None] == digits
    return upper.astype(jnp.bfloat16), lower.astype(jnp.bfloat16)


def apply(planes: Array, drawn: Sequence[Drawn]) -> Array:
    """Applies drawn operations to one example, one after the other.

    Args:
      planes: uint8 [3, height, width].
      drawn: the operations.

    Returns:
      uint8 [3, height, width].
    """
    for one in drawn:
        planes = lax.switch(one.kind, list(_FUNCTIONS.values()), planes, one)
    return planes


def _apply_in_turn(planes: Array, drawn: Sequence[Drawn]) -> Array:
    return lax.map(lambda pair: apply(*pair), (planes, drawn))


_apply_at_once = jax.vmap(apply)


def apply_to_batch(planes: Array, drawn: Sequence[Drawn]) -> Array:
    """Applies each example's own operations.

    Args:
      planes: uint8 [N, 3, height, width].
      drawn: for each layer the operations of all examples: a `Drawn` with leading axes N.

    Returns:
      uint8 [N, 3, height, width].
    """
    return by_platform(_apply_in_turn, _apply_at_once, planes, list(drawn))
