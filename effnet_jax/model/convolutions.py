"""Convolutions, each with two lowerings that have one result and one set of parameters.

XLA's own where accelerators run it well; and on the CPU, where XLA runs a depthwise convolution in a naive loop, a sum
of shifted products with its own gradient, and matrix products.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Function = Callable[..., Any]


def _by_platform(cpu: Function, cpu_gradient: Function, native: Function) -> Function:
    """Makes one differentiable function of (inputs, kernel) from a CPU form, its gradient and a native form.

    The choice is made when the program is lowered, so one traced function serves every platform. The gradient is
    chosen there too: differentiating through the choice itself would keep the residuals of both forms.
    """

    @jax.custom_vjp
    def convolve(inputs: Array, kernel: Array) -> Array:
        return lax.platform_dependent(inputs, kernel, cpu=cpu, default=native)

    def forward(inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return convolve(inputs, kernel), (inputs, kernel)

    def native_gradient(inputs: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        return jax.vjp(native, inputs, kernel)[1](cotangent)

    def backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
        return lax.platform_dependent(*residuals, cotangent, cpu=cpu_gradient, default=native_gradient)

    convolve.defvjp(forward, backward)
    return convolve


def native_conv(inputs: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """XLA's convolution with TensorFlow's SAME padding, which is XLA's too.

    Args:
      inputs: [N, H, W, in].
      kernel: [k, k, in / groups, out].
      stride: of both sides.
      groups: 1, or the number of channels for a depthwise convolution.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), out].
    """
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _pointwise_cpu(inputs: Array, kernel: Array) -> Array:
    filters = kernel.shape[-1]
    flat = inputs.reshape(-1, inputs.shape[-1]) @ kernel.reshape(-1, filters)  # [N*H*W, out]
    return flat.reshape(*inputs.shape[:-1], filters)


def _pointwise_cpu_gradient(inputs: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    return jax.vjp(_pointwise_cpu, inputs, kernel)[1](cotangent)


pointwise_conv = _by_platform(_pointwise_cpu, _pointwise_cpu_gradient, native_conv)
pointwise_conv.__doc__ = "1×1 convolution: inputs [N, H, W, in], kernel [1, 1, in, out] → [N, H, W, out]."


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) of one side: an odd total has its extra pixel after."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def _pad(inputs: Array, kernel_size: int, stride: int) -> Array:
    rows = same_padding(inputs.shape[1], kernel_size, stride)
    columns = same_padding(inputs.shape[2], kernel_size, stride)
    return jnp.pad(inputs, ((0, 0), rows, columns, (0, 0)))


def _window(padded: Array, row: int, column: int, height: int, width: int, stride: int) -> Array:
    """What one tap of the kernel sees: [N, height, width, C], every `stride`-th pixel from (row, column) on."""
    batch, _, _, channels = padded.shape
    return lax.slice(
        padded,
        (0, row, column, 0),
        (batch, row + (height - 1) * stride + 1, column + (width - 1) * stride + 1, channels),
        (1, stride, stride, 1),
    )


def patches(inputs: Array, size: int, stride: int) -> Array:
    """What each output of a convolution sees: [N, H, W, in] → [N, H / stride, W / stride, size * size * in].

    `stride` pixels of a row that lie side by side are taken as one, so that a patch is gathered from few long pieces.
    """
    channels = inputs.shape[-1]
    height, width = (-(-side // stride) for side in inputs.shape[1:3])
    padded = _pad(inputs, size, stride)
    batch, rows, columns, _ = padded.shape
    reach = (size - 1) // stride  # groups of pixels after its first that a patch needs
    padded = jnp.pad(padded, ((0, 0), (0, 0), (0, (width + reach) * stride - columns), (0, 0)))
    grouped = padded.reshape(batch, rows, width + reach, stride * channels)
    pieces = [
        grouped[
            :, u : u + (height - 1) * stride + 1 : stride, group : group + width, : (size - group * stride) * channels
        ]
        for u in range(size)
        for group in range(reach + 1)
    ]
    return jnp.concatenate(pieces, axis=-1)


def _full_cpu(inputs: Array, kernel: Array, stride: int) -> Array:
    """Patches times the kernel as one matrix product."""
    seen = patches(inputs, kernel.shape[0], stride)
    flat = seen.reshape(-1, seen.shape[-1]) @ kernel.reshape(seen.shape[-1], -1)
    return flat.reshape(*seen.shape[:-1], kernel.shape[-1])


@functools.cache
def _full(stride: int) -> Function:
    def cpu_gradient(inputs: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(_full_cpu, stride=stride), inputs, kernel)[1](cotangent)

    return _by_platform(
        functools.partial(_full_cpu, stride=stride), cpu_gradient, functools.partial(native_conv, stride=stride)
    )


def full_conv(inputs: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution over all channels with TensorFlow's SAME padding.

    Args:
      inputs: [N, H, W, in].
      kernel: [k, k, in, out].
      stride: of both sides, at most k.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), out].
    """
    return _full(stride)(inputs, kernel)


def _taps(kernel_size: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(kernel_size) for column in range(kernel_size)]


def _depthwise_cpu(inputs: Array, kernel: Array, stride: int) -> Array:
    """The sum over the kernel's taps of shifted inputs times one weight for each channel."""
    size = kernel.shape[0]
    height, width = (-(-side // stride) for side in inputs.shape[1:3])
    padded = _pad(inputs, size, stride)
    terms = [_window(padded, u, v, height, width, stride) * kernel[u, v, 0] for u, v in _taps(size)]
    return functools.reduce(jnp.add, terms)


def _depthwise_cpu_gradient(inputs: Array, kernel: Array, cotangent: Array, stride: int) -> tuple[Array, Array]:
    size = kernel.shape[0]
    _, height, width, channels = cotangent.shape
    padded = _pad(inputs, size, stride)

    def add_image(total: Array, index: Array) -> tuple[Array, None]:
        # Image by image: the taps read one image many times, and one image fits in the cache.
        image = lax.dynamic_index_in_dim(padded, index, keepdims=True)
        seen = lax.dynamic_index_in_dim(cotangent, index, keepdims=True)
        terms = [
            jnp.sum(_window(image, u, v, height, width, stride) * seen, axis=(0, 1, 2), dtype=jnp.float32)
            for u, v in _taps(size)
        ]
        return total + jnp.stack(terms), None

    total = jnp.zeros((size * size, channels), jnp.float32)
    total, _ = lax.scan(add_image, total, jnp.arange(inputs.shape[0]))
    kernel_gradient = total.reshape(kernel.shape).astype(kernel.dtype)
    return _depthwise_input_gradient(inputs, kernel, cotangent, stride), kernel_gradient


def _depthwise_input_gradient(inputs: Array, kernel: Array, cotangent: Array, stride: int) -> Array:
    """Each input pixel collects the output pixels that saw it.

    Pixels of one parity of the padded image (for stride 2; all of them for stride 1) are seen through the same taps,
    so each parity is a dense sum of shifted cotangents with its share of the taps, and the parities interleave.
    """
    size = kernel.shape[0]
    batch, height, width, channels = inputs.shape
    top, _ = same_padding(height, size, stride)
    left, _ = same_padding(width, size, stride)
    # Pixel p of the input is pixel stride * i + a of the padded image, with i counted from `first` on.
    first = (top // stride, left // stride)
    rows = -(-(top % stride + height) // stride)
    columns = -(-(left % stride + width) // stride)
    reach = (size - 1) // stride  # output i - reach is the first that sees pixels of index i
    pads = [
        (reach - begin, begin + count - outputs, 0)
        for begin, count, outputs in zip(first, (rows, columns), cotangent.shape[1:3], strict=True)
    ]
    padded = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), ((0, 0, 0), *pads, (0, 0, 0)))

    def parity(a: int, b: int) -> Array:  # pixels (stride*i + a, stride*j + b) of the padded image
        terms = [
            _window(padded, reach - u // stride, reach - v // stride, rows, columns, 1) * kernel[u, v, 0]
            for u, v in _taps(size)
            if u % stride == a and v % stride == b
        ]
        return functools.reduce(jnp.add, terms)

    if stride == 1:
        return parity(0, 0)
    grid = [jnp.stack([parity(a, b) for b in range(stride)], axis=3) for a in range(stride)]
    whole = jnp.stack(grid, axis=2).reshape(batch, rows * stride, columns * stride, channels)
    return whole[:, top % stride : top % stride + height, left % stride : left % stride + width]


@functools.cache
def _depthwise(stride: int) -> Function:
    def native(inputs: Array, kernel: Array) -> Array:
        return native_conv(inputs, kernel, stride, groups=inputs.shape[-1])

    return _by_platform(
        functools.partial(_depthwise_cpu, stride=stride),
        functools.partial(_depthwise_cpu_gradient, stride=stride),
        native,
    )


def depthwise_conv(inputs: Array, kernel: Array, stride: int = 1) -> Array:
    """Depthwise convolution with TensorFlow's SAME padding.

    Args:
      inputs: [N, H, W, C].
      kernel: [k, k, 1, C].
      stride: 1 or 2.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), C].
    """
    return _depthwise(stride)(inputs, kernel)
