"""The layers of EfficientNet: convolutions chosen by platform, batch norm, squeeze-and-excite, stochastic depth.

A convolution has one set of parameters and one result, and two lowerings: XLA's own where accelerators run it well,
and on the CPU, where XLA runs a depthwise convolution in a naive loop, a sum of shifted products and matrix products.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

# Source: efficientnet_builder.py.
BATCH_NORM_MOMENTUM = 0.99
BATCH_NORM_EPSILON = 1e-3

Function = Callable[..., Any]


# --- Initialisers. Source: conv_kernel_initializer and dense_kernel_initializer in efficientnet_model.py. ---


def conv_kernel_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Normal, not truncated, with variance 2 / fan_out. A depthwise kernel's fan_out counts its window only.

    Args:
      key: a random key.
      shape: [height, width, in, out], for a depthwise convolution [height, width, 1, channels].
      dtype: of the result.
    """
    height, width, in_filters, out_filters = shape
    depthwise = in_filters == 1
    fan_out = height * width * (1 if depthwise else out_filters)
    return jax.random.normal(key, shape, dtype) * jnp.sqrt(2.0 / fan_out).astype(dtype)


def dense_kernel_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Uniform in ±1/sqrt(classes); shape [in, classes]."""
    limit = shape[1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


# --- Convolutions. ---


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


def _taps(kernel_size: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(kernel_size) for column in range(kernel_size)]


def _depthwise_cpu(inputs: Array, kernel: Array, stride: int) -> Array:
    """The sum over the kernel's taps of shifted inputs times one weight for each channel."""
    size = kernel.shape[0]
    height, width = (-(-side // stride) for side in inputs.shape[1:3])
    padded = _pad(inputs, size, stride)
    return sum(_window(padded, u, v, height, width, stride) * kernel[u, v, 0] for u, v in _taps(size))  # type: ignore


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


# --- Modules. ---


class Conv(nn.Module):
    """A convolution without bias: stem (3×3), pointwise (1×1) or depthwise, by its kernel.

    Attributes:
      filters: output channels; ignored by a depthwise convolution, which keeps its input's.
      kernel_size: side of the window.
      stride: of both sides.
      depthwise: one window for each channel.
      dtype: of the computation; parameters are float32.
    """

    filters: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:  # [N, H, W, in] → [N, H / stride, W / stride, filters]
        in_filters, filters = (1, inputs.shape[-1]) if self.depthwise else (inputs.shape[-1], self.filters)
        shape = (self.kernel_size, self.kernel_size, in_filters, filters)
        kernel = self.param("kernel", conv_kernel_init, shape).astype(self.dtype)
        inputs = inputs.astype(self.dtype)
        if self.depthwise:
            return depthwise_conv(inputs, kernel, self.stride)
        if self.kernel_size == 1:
            return pointwise_conv(inputs, kernel)
        return native_conv(inputs, kernel, self.stride)


class BatchNorm(nn.Module):
    """Batch norm in float32, on the stored statistics unless `update` is set.

    With `update`, the batch's population variance normalises and enters the stored statistics, as in the original's
    training class. Under `jax.jit` the batch is the global one; under `jax.pmap` it is the replica's, or with
    `axis_name` that of all replicas, or of each group of replicas.

    Attributes:
      momentum: share of the old statistics that is kept at an update.
      dtype: of the output.
      axis_name: name of the mapped axis of replicas, or None.
      axis_groups: replica numbers of each group that shares statistics, or None for all together.
    """

    momentum: float = BATCH_NORM_MOMENTUM
    dtype: Any = jnp.float32
    axis_name: str | None = None
    axis_groups: tuple[tuple[int, ...], ...] | None = None

    @nn.compact
    def __call__(self, inputs: Array, update: bool = False, activation: Function | None = None) -> Array:
        """Normalises [..., C] and applies the activation."""
        shape = (inputs.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        stored_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        stored_var = self.variable("batch_stats", "var", jnp.ones, shape)
        inputs = inputs.astype(jnp.float32)
        if update:
            mean, var = self._batch_statistics(inputs)
            if not self.is_initializing():
                keep = self.momentum
                stored_mean.value = keep * stored_mean.value + (1.0 - keep) * mean
                stored_var.value = keep * stored_var.value + (1.0 - keep) * var
        else:
            mean, var = stored_mean.value, stored_var.value
        factor = scale * lax.rsqrt(var + BATCH_NORM_EPSILON)

        def normalise(inputs: Array, mean: Array, factor: Array, bias: Array) -> Array:
            outputs = (inputs - mean) * factor + bias
            return (activation(outputs) if activation else outputs).astype(self.dtype)

        # The backward pass computes it again from the convolution's output, which is kept anyway: reading and writing
        # what lies between would take longer.
        return jax.checkpoint(normalise)(inputs, mean, factor, bias)

    def _batch_statistics(self, inputs: Array) -> tuple[Array, Array]:
        axes = tuple(range(inputs.ndim - 1))
        mean = jnp.mean(inputs, axes)
        var = jnp.mean(jnp.square(inputs - mean), axes)
        if self.axis_name is None or self.is_initializing():
            return mean, var
        # The variance of a union: the mean of the second moments, less the square of the common mean.
        average = functools.partial(lax.pmean, axis_name=self.axis_name, axis_index_groups=self.axis_groups)
        group_mean = average(mean)
        return group_mean, average(var + jnp.square(mean)) - jnp.square(group_mean)


class SqueezeExcite(nn.Module):
    """One 1×1 convolution with bias of the squeeze-and-excite pair, on pooled features [N, in] → [N, filters]."""

    filters: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled: Array) -> Array:
        shape = (1, 1, pooled.shape[-1], self.filters)
        kernel = self.param("kernel", conv_kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.filters,)).astype(self.dtype)
        return pooled.astype(self.dtype) @ kernel[0, 0] + bias


class Dense(nn.Module):
    """The classifier: [N, C] → [N, classes], in float32. Its parameters are those of the unit itself."""

    classes: int

    @nn.compact
    def __call__(self, pooled: Array) -> Array:
        kernel = self.param("kernel", dense_kernel_init, (pooled.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return pooled.astype(jnp.float32) @ kernel + bias


# --- Noise. One key for each example, so that an example's noise does not depend on its device. ---


def stochastic_depth(branch: Array, keys: Array, survival_prob: float) -> Array:
    """Drops the branch of each example with probability 1 - survival_prob, and scales the others up.

    Args:
      branch: [N, H, W, C].
      keys: [N] random keys.
      survival_prob: above 0.
    """
    uniform = jax.vmap(lambda key: jax.random.uniform(key, ()))(keys)
    kept = jnp.floor(survival_prob + uniform) / survival_prob
    return branch * kept.astype(branch.dtype)[:, None, None, None]


def dropout(features: Array, keys: Array, rate: float) -> Array:
    """Inverted dropout: features [N, C], keys [N]."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, features.shape[1:]))(keys)
    return jnp.where(kept, features / (1.0 - rate), 0.0).astype(features.dtype)
