"""The layers of EfficientNet: initial values, convolutions, batch norm, squeeze-and-excite, stochastic depth."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from effnet_jax.errors import ConfigError
from effnet_jax.model.batch_norm import (
    moments_natively,
    normalise,
    normalise_batch,
    normalise_natively,
    normalise_pointwise,
)
from effnet_jax.model.convolutions import Function, depthwise_conv, full_conv, native_conv, pointwise_conv

# Source: efficientnet_builder.py.
BATCH_NORM_MOMENTUM = 0.99


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
      native: XLA's own convolution on every platform.
    """

    filters: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    dtype: Any = jnp.float32
    native: bool = False

    @nn.compact
    def weights(self, channels: int) -> Array:
        """The kernel for inputs of so many channels, [k, k, in, filters] or depthwise [k, k, 1, channels]."""
        in_filters, filters = (1, channels) if self.depthwise else (channels, self.filters)
        shape = (self.kernel_size, self.kernel_size, in_filters, filters)
        return self.param("kernel", conv_kernel_init, shape).astype(self.dtype)

    def __call__(self, inputs: Array) -> Array:  # [N, H, W, in] → [N, H / stride, W / stride, filters]
        kernel = self.weights(inputs.shape[-1])
        inputs = inputs.astype(self.dtype)
        if self.native:
            return native_conv(inputs, kernel, self.stride, groups=kernel.shape[-1] if self.depthwise else 1)
        if self.depthwise:
            return depthwise_conv(inputs, kernel, self.stride)
        if self.kernel_size == 1:
            return pointwise_conv(inputs, kernel)
        return full_conv(inputs, kernel, self.stride)


class BatchNorm(nn.Module):
    """Batch norm in float32, on the stored statistics unless `update` is set.

    With `update`, the batch's population variance normalises and enters the stored statistics, as in the original's
    training class. The batch is what the program sees; where each device runs its own program on its share, with
    `axis_name` that of all devices, or of each group of them.

    Attributes:
      momentum: share of the old statistics that is kept at an update.
      dtype: of the output.
      axis_name: name or names of the mapped axes of devices, or None.
      axis_groups: device numbers of each group that shares statistics, or None for all together.
      native: differentiated by JAX itself.
      folded: it is in the convolution before it (`model.folding`), and what is left of it is its bias.
    """

    momentum: float = BATCH_NORM_MOMENTUM
    dtype: Any = jnp.float32
    axis_name: str | tuple[str, ...] | None = None
    axis_groups: tuple[tuple[int, ...], ...] | None = None
    native: bool = False
    folded: bool = False

    @nn.compact
    def _variables(self, channels: int) -> tuple[Any, Array, Any, Any]:
        if self.folded:
            return None, self.param("bias", nn.initializers.zeros, (channels,)), None, None
        return (
            self.param("scale", nn.initializers.ones, (channels,)),
            self.param("bias", nn.initializers.zeros, (channels,)),
            self.variable("batch_stats", "mean", jnp.zeros, (channels,)),
            self.variable("batch_stats", "var", jnp.ones, (channels,)),
        )

    def scale_and_bias(self, channels: int) -> tuple[Array, Array]:
        """The parameters, [channels] each."""
        return self._variables(channels)[:2]

    def statistics(self, channels: int) -> tuple[Array, Array]:
        """The stored mean and variance, [channels] each."""
        _, _, mean, var = self._variables(channels)
        return mean.value, var.value

    def keep(self, mean: Array, var: Array) -> None:
        """Has a batch's mean and population variance, [channels], enter the stored statistics."""
        _, _, stored_mean, stored_var = self._variables(mean.shape[0])
        self._keep(stored_mean, stored_var, lax.stop_gradient(mean), lax.stop_gradient(var))

    def _keep(self, stored_mean: Any, stored_var: Any, mean: Array, var: Array) -> None:
        keep = self.momentum
        stored_mean.value = keep * stored_mean.value + (1.0 - keep) * mean
        stored_var.value = keep * stored_var.value + (1.0 - keep) * var

    def __call__(
        self,
        inputs: Array,
        update: bool = False,
        activation: Function | None = None,
        source: tuple[Array, Array] | None = None,
    ) -> Array:
        """Normalises [..., C] and applies the activation.

        Args:
          inputs: a convolution's outputs.
          update: whether with the batch's statistics, which then enter the stored ones.
          activation: applied to the result, or None.
          source: of a 1×1 convolution, its inputs and kernel: statistics are taken from their moments.
        """
        scale, bias, stored_mean, stored_var = self._variables(inputs.shape[-1])
        if self.folded:
            if update:
                raise ConfigError(
                    "batch norm that is folded into the convolutions has no statistics that a batch could update: "
                    "train the model without folded=True"
                )
            outputs = inputs.astype(jnp.float32) + bias
            return (activation(outputs) if activation else outputs).astype(self.dtype)
        if not update:
            form = normalise_natively if self.native else normalise
            return form(inputs, scale, bias, stored_mean.value, stored_var.value, activation, self.dtype)
        average = self._average
        if self.is_initializing():
            average = _alone
        if self.native:
            mean, var = moments_natively(inputs, average)
            outputs = normalise_natively(inputs, scale, bias, mean, var, activation, self.dtype)
        elif source is not None:
            outputs, mean, var = normalise_pointwise(inputs, scale, bias, source, activation, self.dtype, average)
        else:
            outputs, mean, var = normalise_batch(
                inputs, scale, bias, stored_mean.value, activation, self.dtype, average
            )
        if not self.is_initializing():
            self._keep(stored_mean, stored_var, mean, var)
        return outputs

    @property
    def _average(self) -> Function:
        """Averages over the devices that share a batch."""
        if self.axis_name is None:
            return _alone
        return functools.partial(lax.pmean, axis_name=self.axis_name, axis_index_groups=self.axis_groups)


def _alone(tree: Any) -> Any:
    return tree


class SqueezeExcite(nn.Module):
    """One 1×1 convolution with bias of the squeeze-and-excite pair, on pooled features [N, in] → [N, filters]."""

    filters: int
    dtype: Any = jnp.float32

    @nn.compact
    def weights(self, channels: int) -> tuple[Array, Array]:
        """Kernel [channels, filters] and bias [filters]."""
        kernel = self.param("kernel", conv_kernel_init, (1, 1, channels, self.filters)).astype(self.dtype)
        return kernel[0, 0], self.param("bias", nn.initializers.zeros, (self.filters,)).astype(self.dtype)

    def __call__(self, pooled: Array) -> Array:
        kernel, bias = self.weights(pooled.shape[-1])
        return pooled.astype(self.dtype) @ kernel + bias


class Dense(nn.Module):
    """The classifier: [N, C] → [N, classes], in float32. Its parameters are those of the unit itself."""

    classes: int

    @nn.compact
    def __call__(self, pooled: Array) -> Array:
        kernel = self.param("kernel", dense_kernel_init, (pooled.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return pooled.astype(jnp.float32) @ kernel + bias


# --- Noise. One key for each example, so that an example's noise does not depend on its device. ---


def survival(keys: Array, survival_prob: float) -> Array:
    """What stochastic depth multiplies the branch of each example with.

    Args:
      keys: [N] random keys.
      survival_prob: above 0.

    Returns:
      float32 [N]: 0 with probability 1 - survival_prob, else 1 / survival_prob.
    """
    uniform = jax.vmap(lambda key: jax.random.uniform(key, ()))(keys)
    return jnp.floor(survival_prob + uniform) / survival_prob


def stochastic_depth(branch: Array, kept: Array) -> Array:
    """Multiplies the branch [N, H, W, C] of each example with what `survival` gave it, [N]."""
    return branch * kept.astype(branch.dtype)[:, None, None, None]


def dropout(features: Array, keys: Array, rate: float) -> Array:
    """Inverted dropout: features [N, C], keys [N]."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, features.shape[1:]))(keys)
    return jnp.where(kept, features / (1.0 - rate), 0.0).astype(features.dtype)
