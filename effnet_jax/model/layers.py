"""The layers of EfficientNet: initial values, convolutions, batch norm, squeeze-and-excite, stochastic depth."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from effnet_jax.model.convolutions import Function, depthwise_conv, full_conv, pointwise_conv

# Source: efficientnet_builder.py.
BATCH_NORM_MOMENTUM = 0.99
BATCH_NORM_EPSILON = 1e-3


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
        return full_conv(inputs, kernel, self.stride)


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
