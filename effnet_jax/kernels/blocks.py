"""Blocks on the CPU as differentiable functions of arrays, by the kernels in `cpp/`.

Two forms. With still batch norm a block is one call in each direction: `block` takes kernels that batch norm has been
folded into, and its backward pass computes the block again, so that nothing wide is kept. With batch norm on the
batch's statistics it is cut where those are needed: `first_half` up to the depthwise convolution, `second_half` from
there to the projection.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from effnet_jax.errors import ConfigError
from effnet_jax.kernels.build import TARGETS, available


@dataclasses.dataclass(frozen=True)
class Excite:
    """Parameters of squeeze-and-excite; with no filters there is none.

    Attributes:
      reduce: [wide, filters].
      reduce_bias: [filters].
      expand: [filters, wide].
      expand_bias: [wide].
    """

    reduce: Array
    reduce_bias: Array
    expand: Array
    expand_bias: Array

    @classmethod
    def none(cls, wide: int) -> "Excite":
        """All gates are 1."""
        return cls(*(jnp.zeros(shape) for shape in ((wide, 0), (0,), (0, wide), (wide,))))

    def arrays(self) -> tuple[Array, ...]:
        """All four."""
        return self.reduce, self.reduce_bias, self.expand, self.expand_bias


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is static of a block.

    Attributes:
      kernel: side of the depthwise window.
      stride: of it.
      relu6: the activation; else swish.
      skip: whether the inputs are added to the outputs.
    """

    kernel: int
    stride: int = 1
    relu6: bool = False
    skip: bool = False

    def options(self) -> dict[str, Any]:
        """Attributes of a call."""
        return {
            "kernel": np.int64(self.kernel),
            "stride": np.int64(self.stride),
            "relu6": np.bool_(self.relu6),
            "skip": np.bool_(self.skip),
        }


def _call(name: str, shapes: Any, *operands: Array, **options: Any) -> Any:
    if not available():
        raise ConfigError("the CPU's kernels are not here: see `effnet_jax.kernels.build.available`")
    outputs = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=_is_shape)
    return jax.ffi.ffi_call(TARGETS[name], outputs, vmap_method="sequential")(*operands, **options)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(side, int) for side in value)


def _seen(shape: Shape, inputs: Array, channels: int) -> tuple[int, ...]:
    batch, height, width, _ = inputs.shape
    return batch, -(-height // shape.stride), -(-width // shape.stride), channels


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _block(shape: Shape, operands: tuple[Array, ...]) -> Array:
    inputs, project_bias = operands[0], operands[10]
    return _call("block_forward", _seen(shape, inputs, project_bias.shape[0]), *operands, **shape.options())


def _block_forward(shape: Shape, operands: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    return _block(shape, operands), operands


def _block_backward(shape: Shape, operands: tuple[Array, ...], cotangent: Array) -> tuple[tuple[Array, ...]]:
    shapes = [operand.shape for operand in operands[:-1]]
    gradients = _call("block_backward", shapes, *operands, cotangent, **shape.options())
    return ((*gradients, jnp.zeros_like(operands[-1])),)


_block.defvjp(_block_forward, _block_backward)


def block(
    shape: Shape,
    inputs: Array,
    expand: Array,
    expand_bias: Array,
    taps: Array,
    bias: Array,
    excite: Excite,
    project: Array,
    project_bias: Array,
    keep: Array,
) -> Array:
    """A whole block whose batch norm is folded into its kernels.

    Args:
      shape: what is static.
      inputs: float32 [N, H, W, in].
      expand: [in, wide]; [0, wide] for a block that does not expand.
      expand_bias: [wide].
      taps: [kernel, kernel, wide].
      bias: [wide], after the depthwise convolution.
      excite: squeeze-and-excite.
      project: [wide, out].
      project_bias: [out].
      keep: [N], what each example's branch is multiplied with: stochastic depth. No gradient flows to it.

    Returns:
      [N, H / stride, W / stride, out].
    """
    return _block(shape, (inputs, expand, expand_bias, taps, bias, *excite.arrays(), project, project_bias, keep))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _first(shape: Shape, moments: bool, operands: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    inputs, _, _, taps = operands
    wide = taps.shape[-1]
    shapes = (_seen(shape, inputs, wide), (inputs.shape[0], wide), (inputs.shape[0], wide))

    outputs, means, variances = _call("first_forward", shapes, *operands, **shape.options(), moments=np.bool_(moments))
    if not moments:
        return outputs, jnp.zeros(wide), jnp.zeros(wide)
    mean = jnp.mean(means, 0)
    return outputs, mean, jnp.mean(variances + jnp.square(means - mean), 0)


def _first_forward(shape: Shape, moments: bool, operands: tuple[Array, ...]) -> Any:
    outputs, mean, var = _first(shape, moments, operands)
    return (outputs, mean, var), (operands, outputs, mean)


def _first_backward(shape: Shape, moments: bool, kept: Any, cotangents: tuple[Array, Array, Array]) -> Any:
    operands, outputs, mean = kept
    cotangent, along_mean, along_var = cotangents
    count = outputs.size // outputs.shape[-1]
    if not moments:
        along_mean = along_var = jnp.zeros_like(mean)
    gradients = _call(
        "first_backward",
        [operand.shape for operand in operands],
        *operands,
        outputs,
        cotangent,
        along_mean / count,
        2.0 * along_var / count,
        mean,
        **shape.options(),
    )
    return (tuple(gradients),)


_first.defvjp(_first_forward, _first_backward)


def first_half(
    shape: Shape, inputs: Array, expand: Array, expand_bias: Array, taps: Array, *, moments: bool = True
) -> tuple[Array, Array, Array]:
    """depthwise(activation(inputs · expand + expand_bias)), and its mean and population variance by channel.

    Args:
      shape: what is static.
      inputs: float32 [N, H, W, in].
      expand: [in, wide]; [0, wide]: there is no expansion.
      expand_bias: [wide].
      taps: [kernel, kernel, wide].
      moments: whether they are asked for.

    Returns:
      [N, H / stride, W / stride, wide], [wide], [wide]; the moments are 0 where they are not asked for.
    """
    return _first(shape, moments, (inputs, expand, expand_bias, taps))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _second(relu6: bool, operands: tuple[Array, ...]) -> Array:

    outputs, project = operands[0], operands[-1]
    return _call("second_forward", (*outputs.shape[:3], project.shape[1]), *operands, relu6=np.bool_(relu6))


def _second_forward(relu6: bool, operands: tuple[Array, ...]) -> Any:
    return _second(relu6, operands), operands


def _second_backward(relu6: bool, operands: tuple[Array, ...], cotangent: Array) -> Any:

    shapes = [operand.shape for operand in operands]
    return (tuple(_call("second_backward", shapes, *operands, cotangent, relu6=np.bool_(relu6))),)


_second.defvjp(_second_forward, _second_backward)


def second_half(
    depthwise: Array, scale: Array, bias: Array, excite: Excite, project: Array, *, relu6: bool = False
) -> Array:
    """(activation(scale * depthwise + bias) * gates) · project.

    Args:
      depthwise: float32 [N, H, W, wide].
      scale: [wide].
      bias: [wide].
      excite: squeeze-and-excite, by which the gates are made.
      project: [wide, out].
      relu6: the activation; else swish.

    Returns:
      [N, H, W, out].
    """
    return _second(relu6, (depthwise, scale, bias, *excite.arrays(), project))
