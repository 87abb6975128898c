"""Units of the network by the CPU's kernels: parameters taken from their layers, batch norm folded into them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from effnet_jax.errors import ConfigError
from effnet_jax.kernels import blocks
from effnet_jax.kernels.build import available
from effnet_jax.model.batch_norm import affine, pointwise_moments
from effnet_jax.model.convolutions import patches
from effnet_jax.model.layers import stochastic_depth
from effnet_jax.model.variants import Block

Parts = Mapping[str, Any]  # the layers of a block, by name


def chosen(lowering: str, dtype: Any, axis_name: Any = None) -> bool:
    """Whether what is traced now runs by the kernels: asked for, or fit for it.

    They compute in float32 on the one CPU that a process has: XLA does not know how to share them between devices, and
    statistics of other devices do not reach them.

    Raises:
      ConfigError: asked for, and not possible.
    """
    fits = (
        dtype == jnp.float32
        and axis_name is None
        and not jax.config.read("jax_enable_x64")
        and jax.default_backend() == "cpu"
    )
    if lowering == "auto":
        return fits and jax.device_count() == 1 and available()
    if lowering == "kernels" and not (fits and available()):
        raise ConfigError(
            "lowering='kernels' needs float32, a CPU, a C++ compiler, and batch norm of one device: leave it at 'auto'"
        )
    return lowering == "kernels"


def _folded(inputs: Array, kernel: Array, batch_norm: Any, update: bool) -> tuple[Array, Array]:
    """A 1×1 convolution and its batch norm as one: kernel [in, out] and bias [out].

    The batch's statistics come from the moments of the inputs, which are narrower than what is made of them; that is
    then never written. The inputs are centred first: a mean far from zero would cost the variance its digits.
    """
    filters = kernel.shape[1]
    if update:
        centre = lax.stop_gradient(jnp.mean(inputs, (0, 1, 2)))
        mean, var = pointwise_moments(inputs - centre, kernel)
        mean = mean + centre @ kernel
        batch_norm.keep(mean, var)
    else:
        mean, var = batch_norm.statistics(filters)
    scale, bias = batch_norm.scale_and_bias(filters)
    factor, shift = affine(scale, bias, mean, var)
    return kernel * factor, shift


def convolution(inputs: Array, conv: Any, batch_norm: Any, update: bool, relu6: bool) -> Array:
    """The stem or the top: a convolution, batch norm, activation."""
    kernel = conv.weights(inputs.shape[-1])
    if conv.kernel_size > 1:
        inputs = patches(inputs, conv.kernel_size, conv.stride)
    kernel, bias = _folded(inputs, kernel.reshape(inputs.shape[-1], -1), batch_norm, update)
    taps = jnp.ones((1, 1, kernel.shape[1]))
    return blocks.first_half(blocks.Shape(1, relu6=relu6), inputs, kernel, bias, taps, moments=False)[0]


def _still(batch_norm: Any, channels: int) -> tuple[Array, Array]:
    (scale, bias), (mean, var) = batch_norm.scale_and_bias(channels), batch_norm.statistics(channels)
    return affine(scale, bias, mean, var)


def block(inputs: Array, block: Block, parts: Parts, update: bool, relu6: bool, kept: Array | None) -> Array:
    """A whole block; `kept` [N] is what stochastic depth multiplies each branch with, or None."""
    channels, wide = inputs.shape[-1], block.expanded_filters
    shape = blocks.Shape(block.kernel_size, block.stride, relu6, block.skip)
    expand, expand_bias = jnp.zeros((0, wide)), jnp.zeros(wide)
    if "expand_conv" in parts:
        kernel = parts["expand_conv"].weights(channels)[0, 0]
        expand, expand_bias = _folded(inputs, kernel, parts["expand_bn"], update)
    taps = parts["depthwise_conv"].weights(wide)[:, :, 0]
    project = parts["project_conv"].weights(wide)[0, 0]
    excite = blocks.Excite.none(wide)
    if "se_reduce" in parts:
        excite = blocks.Excite(*parts["se_reduce"].weights(wide), *parts["se_expand"].weights(block.se_filters))
    if update:
        norm = parts["depthwise_bn"]
        outputs, mean, var = blocks.first_half(shape, inputs, expand, expand_bias, taps)
        scale, bias = norm.scale_and_bias(wide)
        factor, shift = affine(scale, bias, mean, var)
        outputs = blocks.second_half(outputs, factor, shift, excite, project, relu6=relu6)
        mean, var = lax.stop_gradient((mean, var))
        norm.keep(mean, var)
        outputs = parts["project_bn"](outputs, True)
        if kept is not None:
            outputs = stochastic_depth(outputs, kept)
        return outputs + inputs if block.skip else outputs
    factor, shift = _still(parts["depthwise_bn"], wide)
    project_factor, project_shift = _still(parts["project_bn"], block.out_filters)
    return blocks.block(
        shape,
        inputs,
        expand,
        expand_bias,
        taps * factor,
        shift,
        excite,
        project * project_factor,
        project_shift,
        jnp.ones(inputs.shape[0]) if kept is None else lax.stop_gradient(kept),
    )
