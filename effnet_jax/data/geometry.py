"""What a view shows of its source: the window of a photograph, and the affine map from view pixels to source pixels."""

import jax
import jax.numpy as jnp
from jax import Array


def draw_window(key: Array, aspect: Array, area: tuple[float, float] | None) -> Array:
    """Draws the part of one photograph that a view shows.

    The photograph has been squeezed to a square; the window undoes that.

    Args:
      key: a random key.
      aspect: width / height of the photograph before the squeeze, float32 [].
      area: bounds of the window's share of the photograph's area: a window of aspect 3/4..4/3 at a random place, the
        first of 10 that fits, as `sample_distorted_bounding_box` in the original. None: the largest centre square.

    Returns:
      left, top, width and height as fractions of the photograph, float32 [4].
    """
    side = jnp.minimum(aspect, 1.0)
    square = jnp.stack([side / aspect, side])
    if area is None:
        return jnp.concatenate([(1 - square) / 2, square])
    area_key, shape_key, place_key = jax.random.split(key, 3)
    share = jax.random.uniform(area_key, (10,), minval=area[0], maxval=area[1])
    ratio = jax.random.uniform(shape_key, (10,), minval=3 / 4, maxval=4 / 3)
    sizes = jnp.sqrt(share[:, None] * jnp.stack([ratio / aspect, aspect / ratio], axis=1))  # fractions [10, 2]
    fits = jnp.all(sizes <= 1, axis=1)
    extent = jnp.where(fits.any(), sizes[jnp.argmax(fits)], square)
    # Where none fits, the centre square, as in the original.
    place = jnp.where(fits.any(), jax.random.uniform(place_key, (2,)), 0.5)
    return jnp.concatenate([place * (1 - extent), extent])


def view_matrix(
    window: Array,
    *,
    size: tuple[int, int],
    resolution: int,
    flip: Array,
    shift: Array,
    rotation: Array,
    shear: Array,
    zoom: Array,
) -> Array:
    """Where the pixels of one view lie in its source.

    The view is, in this order: the window of the source, resized to a square; magnified, sheared and rotated about
    its centre; shifted; flipped. All arguments are those of one example; use `jax.vmap` for a batch.

    Args:
      window: left, top, width and height as fractions of the source, float32 [4].
      size: height and width of the source in pixels.
      resolution: side of the view in pixels.
      flip: whether to mirror it left to right, bool [].
      shift: to the right and down, as fractions of the view, float32 [2].
      rotation: counter-clockwise, in radians, float32 [].
      shear: along x and along y, in radians, float32 [2].
      zoom: magnification, float32 [].

    Returns:
      float32 [2, 3]: (x, y) in source pixels = matrix @ (column, row, 1) of the view.
    """
    centre = (resolution - 1) / 2
    cos, sin = jnp.cos(rotation), jnp.sin(rotation)
    slant = jnp.tan(shear)
    # From a view's offset to the square's: undo the flip, the rotation, the shear, the zoom. Written out: a matrix
    # product of the device's default precision would round to bfloat16 on TPU. y points down.
    mirror = jnp.where(flip, -1.0, 1.0)
    x_row = jnp.stack([cos - slant[0] * sin, -sin - slant[0] * cos])
    y_row = jnp.stack([sin - slant[1] * cos, cos + slant[1] * sin])
    linear = jnp.stack([x_row, y_row]) / zoom
    pitch = window[2:] * jnp.array([size[1] / resolution, size[0] / resolution], jnp.float32)
    origin = window[:2] * jnp.array([size[1], size[0]], jnp.float32)
    moved = centre + shift * resolution  # the view's centre comes to lie here before the flip
    offset = origin + pitch * (centre - linear[:, 0] * moved[0] - linear[:, 1] * moved[1])
    # Flipped: column j shows what column R - 1 - j would show.
    offset = offset + pitch * linear[:, 0] * jnp.where(flip, resolution - 1.0, 0.0)
    linear = linear * jnp.stack([mirror, jnp.ones(())])
    return jnp.concatenate([pitch[:, None] * linear, offset[:, None]], axis=1)
