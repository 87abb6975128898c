"""What follows the resampling: colour jitter, cutout, random erasing, mixup and cutmix, on float32 planes.

All functions but `mix` work on one example (use `jax.vmap`); `mix` takes neighbours of a batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

GREY = 128.0  # fills what cutout removes; the original's replacement colour
# ITU-R 601, as Pillow and most of the field use it.
_LUMA = (0.299, 0.587, 0.114)


def jitter_colour(key: Array, planes: Array, brightness: float, contrast: float, saturation: float) -> Array:
    """Changes brightness, contrast and saturation by random factors, each uniform in 1 - amount .. 1 + amount.

    Args:
      key: a random key.
      planes: float32 [3, height, width].
      brightness: amount, 0: off.
      contrast: amount, 0: off.
      saturation: amount, 0: off.

    Returns:
      float32 [3, height, width], within 0..255.
    """
    amounts = (brightness, contrast, saturation)
    draws = jax.random.uniform(key, (3,), minval=-1.0)
    factors = [1 + draw * amount if amount else None for draw, amount in zip(draws, amounts, strict=True)]
    return adjust_colour(planes, *factors)


def adjust_colour(planes: Array, brightness: Array | None, contrast: Array | None, saturation: Array | None) -> Array:
    """Multiplies brightness, then the distance from the mean grey, then the distance from each pixel's grey.

    Args:
      planes: float32 [3, height, width].
      brightness: factor [], None: leave.
      contrast: factor [], None: leave.
      saturation: factor [], None: leave.

    Returns:
      float32 [3, height, width], within 0..255 after each change.
    """
    planes = jnp.clip(planes, 0, 255)
    if brightness is not None:
        planes = jnp.clip(planes * brightness, 0, 255)
    if contrast is not None:
        mean = _grey(planes).mean()
        planes = jnp.clip(mean + contrast * (planes - mean), 0, 255)
    if saturation is not None:
        grey = _grey(planes)
        planes = jnp.clip(grey + saturation * (planes - grey), 0, 255)
    return planes


def _grey(planes: Array) -> Array:
    return _LUMA[0] * planes[0] + _LUMA[1] * planes[1] + _LUMA[2] * planes[2]


def cut_out(key: Array, planes: Array, side: int) -> Array:
    """Fills a square with grey; its centre is uniform over the view, so that it may reach over the edge.

    Args:
      key: a random key.
      planes: float32 [3, height, width].
      side: of the square, in pixels.

    Returns:
      float32 [3, height, width].
    """
    size = jnp.array(planes.shape[1:])
    start = jax.random.randint(key, (2,), 0, size) - side // 2
    return jnp.where(_inside(planes.shape, start, start + side), GREY, planes)


def erase(key: Array, planes: Array, probability: float) -> Array:
    """Fills a random rectangle with one random colour (random erasing, Zhong et al., arXiv 1708.04896).

    The rectangle covers 2 to 33 % of the view and has an aspect of 3/10 to 10/3, at a uniform place.

    Args:
      key: a random key.
      planes: float32 [3, height, width].
      probability: how often.

    Returns:
      float32 [3, height, width].
    """
    coin_key, area_key, aspect_key, place_key, colour_key = jax.random.split(key, 5)
    size = jnp.array(planes.shape[1:])
    area = jax.random.uniform(area_key, minval=0.02, maxval=0.33)
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=jnp.log(0.3), maxval=jnp.log(1 / 0.3)))
    shape = jnp.minimum(jnp.sqrt(area * jnp.stack([aspect, 1 / aspect])), 1.0) * size
    start = jax.random.uniform(place_key, (2,)) * (size - shape)
    colour = jax.random.uniform(colour_key, (3, 1, 1), maxval=255.0)
    chosen = jax.random.uniform(coin_key) < probability
    return jnp.where(chosen & _inside(planes.shape, jnp.round(start), jnp.round(start + shape)), colour, planes)


def _inside(shape: tuple[int, ...], start: Array, stop: Array) -> Array:
    """Whether each pixel lies in the box from `start` to below `stop` (y, x): bool [1, height, width]."""
    rows, columns = jnp.arange(shape[-2])[:, None], jnp.arange(shape[-1])[None, :]
    return ((rows >= start[0]) & (rows < stop[0]) & (columns >= start[1]) & (columns < stop[1]))[None]


def _neighbours(rows: Array) -> Array:
    """Each row's neighbour: rows 0 and 1 change places, 2 and 3, …; the last of an odd number is its own."""
    even = len(rows) // 2 * 2
    pairs = rows[:even].reshape(even // 2, 2, *rows.shape[1:])
    return jnp.concatenate([pairs[:, ::-1].reshape(rows[:even].shape), rows[even:]])


_CELLS = 1024  # of the table of quantiles


def draw_beta(key: Array, alpha: float) -> Array:
    """Draws from Beta(alpha, alpha) by its quantiles.

    `jax.random.beta` rejects in a loop, whose end all devices would have to agree on in every round.

    Args:
      key: a random key.
      alpha: above 0.

    Returns:
      float32 [], in 0..1.
    """
    draw = jax.random.uniform(key)
    place = jnp.minimum(draw, 1 - draw) * (2 * _CELLS)
    cell = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, _CELLS - 1)
    table = jnp.asarray(_lower_quantiles(alpha), jnp.float32)
    value = table[cell] + (table[cell + 1] - table[cell]) * (place - cell)
    lower = value ** (1 / min(alpha, 1.0))
    return jnp.where(draw < 0.5, lower, 1 - lower)


def _lower_quantiles(alpha: float) -> np.ndarray:
    """The quantiles q of Beta(alpha, alpha) at probabilities 0..1/2, as q^min(alpha, 1): float64 [_CELLS + 1].

    Below alpha = 1 the density is infinite at 0; over u = x^alpha it is flat there, and so are the quantiles.
    """
    power = min(alpha, 1.0)
    u = np.linspace(0.0, 0.5**power, 64 * _CELLS + 1)
    x = u ** (1 / power)
    density = (4 * x * (1 - x)) ** (alpha - 1) if alpha >= 1 else (1 - x) ** (alpha - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(np.linspace(0.0, 1.0, _CELLS + 1), mass / mass[-1], u)


def mix(keys: Array, planes: Array, targets: Array, mixup: float, cutmix: float) -> tuple[Array, Array]:
    """Mixes each example with its neighbour in the batch: the first with the second, the third with the fourth.

    The original takes partners out of the reversed batch of a device, which depends on how many devices there are;
    pairs are the same on any number. In a shuffled batch neighbours are as good as any.

    Mixup (Zhang et al., arXiv 1710.09412) blends with weight max(w, 1 - w), w ~ Beta(alpha, alpha), an example of
    its own keeping the larger weight. CutMix (Yun et al., arXiv 1905.04899) pastes the same box of the partner, whose
    area is 1 - w before it is cut at the borders; targets follow the area really pasted. With both, each example
    draws one of them.

    Args:
      keys: one for each example [N].
      planes: float32 [N, 3, height, width].
      targets: float32 [N, classes].
      mixup: alpha; 0: off.
      cutmix: alpha; 0: off.

    Returns:
      planes and targets of the same shapes.
    """
    height, width = planes.shape[2:]
    which_key, mixup_key, cutmix_key, place_key = (
        jax.vmap(jax.random.fold_in, (0, None))(keys, purpose) for purpose in range(4)
    )
    partners, partner_targets = _neighbours(planes), _neighbours(targets)
    by_cutmix = jnp.full(len(planes), not mixup)
    if mixup and cutmix:
        by_cutmix = jax.vmap(lambda key: jax.random.bernoulli(key))(which_key)

    # The partner's weight in each pixel [N, 1, height, width], and in the target [N].
    weights = jnp.zeros((len(planes), 1, 1, 1))
    shares = jnp.zeros(len(planes))
    if mixup:
        own = jax.vmap(lambda key: draw_beta(key, mixup))(mixup_key)
        shares = 1 - jnp.maximum(own, 1 - own)
        weights = shares[:, None, None, None]
    if cutmix:

        def box(key: Array, place: Array) -> Array:
            side = jnp.sqrt(1 - draw_beta(key, cutmix)) * jnp.array([height, width])
            centre = jax.random.uniform(place, (2,)) * jnp.array([height, width])
            return _inside(planes.shape, jnp.round(centre - side / 2), jnp.round(centre + side / 2))

        boxes = jax.vmap(box)(cutmix_key, place_key).astype(jnp.float32)
        weights = jnp.where(by_cutmix[:, None, None, None], boxes, weights)
        shares = jnp.where(by_cutmix, boxes.mean((1, 2, 3)), shares)
    planes = planes * (1 - weights) + partners * weights
    shares = shares[:, None]
    return planes, targets * (1 - shares) + partner_targets * shares
