"""Batch norm's own gradient against what JAX makes of the formula, and its statistics against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax.model import batch_norm, units
from effnet_jax.model.efficientnet import create_model
from tests import synthetic

EPSILON = batch_norm.EPSILON


def a_batch(mean=0.5, spread=2.0, dtype=np.float32):
    """Inputs of a 1×1 convolution, its kernel, and scale, bias and shift of the batch norm after it."""
    draw = np.random.default_rng(0)
    inputs = (mean + spread * draw.normal(size=(8, 6, 5, 4))).astype(dtype)
    kernel = draw.normal(size=(4, 12)).astype(dtype)
    scale, bias, shift = (draw.normal(size=12).astype(np.float32) for _ in range(3))
    return inputs, kernel, scale.clip(-2, 2), bias, shift


def plain(outputs, scale, bias, activation):
    """The formula, in the type of its inputs."""
    mean = jnp.mean(outputs, (0, 1, 2))
    var = jnp.mean(jnp.square(outputs - mean), (0, 1, 2))
    normalised = (outputs - mean) / jnp.sqrt(var + EPSILON) * scale + bias
    return activation(normalised) if activation else normalised


@pytest.mark.parametrize("activation", [None, jax.nn.silu, jax.nn.relu6], ids=["none", "swish", "relu6"])
@pytest.mark.parametrize("form", ["own outputs", "narrow inputs"])
def test_the_gradient_is_that_of_the_formula(activation, form):
    inputs, kernel, scale, bias, shift = a_batch()
    weights = np.random.default_rng(1).normal(size=(8, 6, 5, 12))
    scale[3] = 0.0  # a dead channel's scale still has a gradient

    def ours(inputs, kernel, scale, bias):
        outputs = inputs @ kernel
        if form == "own outputs":
            result = batch_norm.normalise_batch(outputs, scale, bias, jnp.asarray(shift), activation, jnp.float32)
        else:
            source = (inputs, kernel)
            result = batch_norm.normalise_pointwise(outputs, scale, bias, source, activation, jnp.float32)
        return jnp.sum(result[0] * weights)

    def theirs(inputs, kernel, scale, bias):
        return jnp.sum(plain(inputs @ kernel, scale, bias, activation) * weights)

    found = jax.jit(jax.grad(ours, (0, 1, 2, 3)))(inputs, kernel, scale, bias)
    with jax.enable_x64(True):
        doubles = [np.asarray(value, np.float64) for value in (inputs, kernel, scale, bias)]
        wanted = jax.jit(jax.grad(theirs, (0, 1, 2, 3)))(*doubles)
        wanted = [np.asarray(value) for value in wanted]
    for ours_, theirs_, name in zip(found, wanted, ("inputs", "kernel", "scale", "bias"), strict=True):
        np.testing.assert_allclose(ours_, theirs_, atol=2e-5 * np.abs(theirs_).max(), err_msg=name)


@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0])
def test_moments_keep_their_digits_far_from_zero(mean):
    inputs, kernel, *_ = a_batch(mean=mean, spread=1.0)
    outputs = (inputs @ kernel).astype(np.float32)
    exact = inputs.astype(np.float64) @ kernel.astype(np.float64)
    near = outputs.mean((0, 1, 2)) + 0.1  # as stored statistics are near
    for moments in (
        batch_norm.batch_moments(outputs, near),
        batch_norm._moments_in_one_pass(lambda tree: tree, outputs, near),
    ):
        np.testing.assert_allclose(moments[0], exact.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(moments[1], exact.var((0, 1, 2)), rtol=2e-4)


def test_on_the_cpu_a_variance_keeps_its_digits_without_a_shift():
    inputs, kernel, *_ = a_batch(mean=100.0, spread=1.0)
    outputs = (inputs @ kernel).astype(np.float32)
    _, var = jax.jit(batch_norm.batch_moments)(outputs, np.zeros(12, np.float32))
    np.testing.assert_allclose(var, outputs.astype(np.float64).var((0, 1, 2)), rtol=1e-6)


def test_narrow_moments_are_those_of_the_outputs():
    inputs, kernel, *_ = a_batch(mean=3.0, spread=1.0)
    exact = inputs.astype(np.float64) @ kernel.astype(np.float64)
    mean, var = jax.jit(batch_norm.pointwise_moments)(inputs, kernel)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("form", ["own outputs", "narrow inputs"])
def test_devices_that_share_a_batch_get_its_gradient(form):
    inputs, kernel, scale, bias, shift = a_batch()
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    average = functools.partial(jax.lax.pmean, axis_name="d")

    def loss(inputs, kernel, scale, bias, average):
        if form == "own outputs":
            result = batch_norm.normalise_batch(
                inputs @ kernel, scale, bias, jnp.asarray(shift), jax.nn.silu, jnp.float32, average
            )
        else:
            source = (inputs, kernel)
            result = batch_norm.normalise_pointwise(
                inputs @ kernel, scale, bias, source, jax.nn.silu, jnp.float32, average
            )
        return jnp.mean(jnp.sin(result[0]))

    def share(inputs, *others):
        own, *rest = jax.grad(functools.partial(loss, average=average), (0, 1, 2, 3))(inputs, *others)
        return own / 4, average(rest)

    specs = (jax.P("d"), jax.P(), jax.P(), jax.P())
    mapped = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=(jax.P("d"), jax.P()), check_vma=False)
    own, rest = jax.jit(mapped)(inputs, kernel, scale, bias)
    alone = jax.grad(functools.partial(loss, average=lambda tree: tree), (0, 1, 2, 3))(inputs, kernel, scale, bias)
    for found, wanted in zip((own, *rest), alone, strict=True):
        np.testing.assert_allclose(found, wanted, atol=3e-5 * np.abs(wanted).max())


def test_a_networks_gradient_is_the_same_by_narrow_moments(monkeypatch):
    """Wired through the blocks: with every expansion called wide, against each layer's own statistics."""
    monkeypatch.setattr(units, "_WIDE", 0)
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.float32)
    plain, narrow = (create_model("b0", num_classes=4, batch_norm_narrow_moments=given) for given in (False, True))
    variables = synthetic.variables("b0", num_classes=4)

    def loss(params, model):
        logits, updates = model.apply(
            {**variables, "params": params}, images, update_batch_norm=True, mutable=["batch_stats"]
        )
        return jnp.mean(jnp.square(logits - 1)), updates["batch_stats"]

    def gradient(model):
        compiled = jax.jit(
            jax.grad(functools.partial(loss, model=model), has_aux=True), compiler_options=synthetic.QUICK_COMPILE
        )
        return compiled(variables["params"])

    (wanted, statistics), (found, ours) = gradient(plain), gradient(narrow)
    together = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(wanted)))
    apart = np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True)))
    assert 0 < apart < 1e-3 * together  # another order of sums, magnified by batch norm over few pixels
    for one, other in zip(*map(jax.tree.leaves, (ours, statistics)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
