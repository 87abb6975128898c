"""Batch norm and the activation after it as one differentiable function, with a gradient of its own.

Only the convolution's output is kept for the backward pass, in the type that it came in: what lies between is computed
again, which costs less than writing and reading it. Everything is computed in float32.

Source: Ioffe and Szegedy, "Batch Normalization" (2015), section 3, for the gradient through the batch's statistics.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Activation = Callable[[Array], Array]
Average = Callable[[Any], Any]  # over the devices that share a batch; or the identity

EPSILON = 1e-3  # Source: efficientnet_builder.py.


def affine(scale: Array, bias: Array, mean: Array, var: Array) -> tuple[Array, Array]:
    """What batch norm with given statistics does to each channel: (factor, shift), for factor * inputs + shift."""
    factor = scale * lax.rsqrt(var + EPSILON)
    return factor, bias - mean * factor


def normalise(
    inputs: Array, scale: Array, bias: Array, mean: Array, var: Array, activation: Activation | None, dtype: Any
) -> Array:
    """Normalises with given statistics, which get no gradient of the batch.

    Args:
      inputs: [..., C].
      scale: float32 [C].
      bias: float32 [C].
      mean: float32 [C].
      var: float32 [C].
      activation: applied to the result, or None.
      dtype: of the result.

    Returns:
      [..., C].
    """
    factor = scale * lax.rsqrt(var + EPSILON)
    return _affine(activation, jnp.dtype(dtype), False, inputs, mean, factor, bias)


def _activated(activation: Activation | None, centred: Array, factor: Array, bias: Array) -> Array:
    outputs = centred * factor + bias
    return activation(outputs) if activation else outputs


def normalise_natively(
    inputs: Array, scale: Array, bias: Array, mean: Array, var: Array, activation: Activation | None, dtype: Any
) -> Array:
    """`normalise` as JAX itself differentiates it, in either mode and through the statistics too."""
    factor = scale * lax.rsqrt(var + EPSILON)
    return _activated(activation, inputs.astype(jnp.float32) - mean, factor, bias).astype(dtype)


def moments_natively(inputs: Array, average: Average) -> tuple[Array, Array]:
    """`batch_moments` on any platform in one form, as JAX itself differentiates it."""
    return _moments_in_two_passes(average, inputs, inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _affine(
    activation: Activation | None, dtype: Any, summed: bool, inputs: Array, mean: Array, factor: Array, bias: Array
) -> Array:
    return _activated(activation, inputs.astype(jnp.float32) - mean, factor, bias).astype(dtype)


def _affine_forward(
    activation: Activation | None, dtype: Any, summed: bool, *operands: Array
) -> tuple[Array, tuple[Array, ...]]:
    return _affine(activation, dtype, summed, *operands), operands


def _affine_backward(
    activation: Activation | None, dtype: Any, summed: bool, kept: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array, Array, Array]:
    inputs, mean, factor, bias = kept
    centred = inputs.astype(jnp.float32) - mean
    _, pull = jax.vjp(functools.partial(_activated, activation), centred, factor, bias)
    inner, factor_gradient, bias_gradient = pull(cotangent.astype(jnp.float32))
    inner = inner.astype(inputs.dtype)
    if summed:  # else it would be written in float32, in which it is added up
        inner = lax.optimization_barrier(inner)
    return inner, -factor * bias_gradient, factor_gradient, bias_gradient


_affine.defvjp(_affine_forward, _affine_backward)


def normalise_batch(
    inputs: Array,
    scale: Array,
    bias: Array,
    shift: Array,
    activation: Activation | None,
    dtype: Any,
    average: Average = lambda tree: tree,
) -> tuple[Array, Array, Array]:
    """Normalises with the batch's own statistics, the population variance among them.

    Args:
      inputs: [..., C], this device's share of the batch.
      scale: float32 [C].
      bias: float32 [C].
      shift: float32 [C], near the mean: what is taken off before squares are added up where that happens in one pass,
        so that a mean far from zero costs no digits. It changes nothing else.
      activation: applied to the result, or None.
      dtype: of the result.
      average: over the devices that share a batch.

    Returns:
      The result [..., C], and the batch's mean and variance, float32 [C], through which no gradient flows back.
    """
    outputs, mean, var = _batch(activation, jnp.dtype(dtype), average, inputs, scale, bias, lax.stop_gradient(shift))
    return outputs, lax.stop_gradient(mean), lax.stop_gradient(var)


def _moments_in_two_passes(average: Average, inputs: Array, shift: Array) -> tuple[Array, Array]:
    """On the CPU neither a second pass nor a second message counts."""
    del shift
    axes = tuple(range(inputs.ndim - 1))
    inputs = inputs.astype(jnp.float32)
    own = jnp.mean(inputs, axes)
    mean = average(own)
    return mean, average(jnp.mean(jnp.square(inputs - own), axes) + jnp.square(own - mean))


def _moments_in_one_pass(average: Average, inputs: Array, shift: Array) -> tuple[Array, Array]:
    """Sums that are added up while the convolution's output is written, and sent in one message."""
    axes = tuple(range(inputs.ndim - 1))
    centred = inputs.astype(jnp.float32) - shift
    mean, square = average((jnp.mean(centred, axes), jnp.mean(jnp.square(centred), axes)))
    return mean + shift, jnp.maximum(square - jnp.square(mean), 0.0)


def batch_moments(inputs: Array, shift: Array, average: Average = lambda tree: tree) -> tuple[Array, Array]:
    """Returns mean and population variance over all axes but the last, float32 [C] each.

    Args:
      inputs: [..., C].
      shift: float32 [C], near the mean. Where one pass is made, the variance has 2e-7 of (mean - shift)² as its error.
      average: over the devices that share a batch.
    """
    two, one = (functools.partial(form, average) for form in (_moments_in_two_passes, _moments_in_one_pass))
    return lax.platform_dependent(inputs, shift, cpu=two, default=one)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _batch(
    activation: Activation | None, dtype: Any, average: Average, inputs: Array, scale: Array, bias: Array, shift: Array
) -> tuple[Array, Array, Array]:
    mean, var = batch_moments(inputs, shift, average)
    return _affine(activation, dtype, False, inputs, mean, scale * lax.rsqrt(var + EPSILON), bias), mean, var


def _batch_forward(
    activation: Activation | None, dtype: Any, average: Average, inputs: Array, scale: Array, bias: Array, shift: Array
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    outputs, mean, var = _batch(activation, dtype, average, inputs, scale, bias, shift)
    return (outputs, mean, var), (inputs, scale, bias, mean, var)


def _batch_backward(
    activation: Activation | None,
    dtype: Any,
    average: Average,
    kept: tuple[Array, ...],
    cotangents: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array, None]:
    inputs, scale, bias, mean, var = kept
    axes = tuple(range(inputs.ndim - 1))
    rate = lax.rsqrt(var + EPSILON)

    def normalised() -> Array:
        return (inputs.astype(jnp.float32) - mean) * rate

    inner = cotangents[0].astype(jnp.float32)
    if activation:
        inner = jax.vjp(activation, normalised() * scale + bias)[1](inner)[0]
    bias_gradient, scale_gradient = jnp.sum(inner, axes), jnp.sum(inner * normalised(), axes)
    # Kept in the activations' type: it is written, and read again when the sums of all of it are known.
    inner = lax.optimization_barrier(inner.astype(inputs.dtype)).astype(jnp.float32)
    count = inputs.size // inputs.shape[-1]
    along_bias, along_scale = average((bias_gradient / count, scale_gradient / count))
    gradient = (inner - along_bias - normalised() * along_scale) * (rate * scale)
    return gradient.astype(inputs.dtype), scale_gradient, bias_gradient, None


_batch.defvjp(_batch_forward, _batch_backward)


def pointwise_moments(inputs: Array, kernel: Array, average: Average = lambda tree: tree) -> tuple[Array, Array]:
    """Returns mean and population variance of what a 1×1 convolution makes, from the moments of what it takes.

    Of y = x k the mean is mean(x) k, and the variance of channel f is k_f' cov(x) k_f. An expansion's input has a sixth
    of its output's channels, so that it is this narrow array which is read for the statistics, and which their gradient
    goes to.

    Args:
      inputs: [..., C], this device's share of the batch.
      kernel: [C, F], in the inputs' type.
      average: over the devices that share a batch; called once.

    Returns:
      float32 [F] each.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    squares = lax.dot_general(  # products of bfloat16 are exact in float32, in which they are added up
        rows,
        rows,
        (((0,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    mean, squares = average((jnp.mean(rows, 0, dtype=jnp.float32), squares / rows.shape[0]))
    covariance = squares - jnp.outer(mean, mean)
    weights = kernel.astype(jnp.float32)
    multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    return multiply(mean, weights), jnp.maximum(jnp.sum(weights * multiply(covariance, weights), 0), 0.0)


def normalise_pointwise(
    outputs: Array,
    scale: Array,
    bias: Array,
    source: tuple[Array, Array],
    activation: Activation | None,
    dtype: Any,
    average: Average = lambda tree: tree,
) -> tuple[Array, Array, Array]:
    """Does as `normalise_batch` for a 1×1 convolution, by the moments of its `source`: (inputs, kernel [C, F])."""
    mean, var = pointwise_moments(*source, average)
    normalised = _affine(activation, jnp.dtype(dtype), True, outputs, mean, scale * lax.rsqrt(var + EPSILON), bias)
    return normalised, lax.stop_gradient(mean), lax.stop_gradient(var)
