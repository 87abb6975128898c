"""The CPU's kernels against XLA's own convolutions in float64, value and gradients."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax import create_model
from effnet_jax.errors import ConfigError
from effnet_jax.kernels import blocks
from effnet_jax.kernels.build import available
from effnet_jax.model.convolutions import native_conv
from tests import synthetic

COMPILERS = ("c++", "g++", "clang++", os.environ.get("CXX") or "c++")
pytestmark = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="there is no C++ compiler here")


def test_a_machine_with_a_compiler_has_them():
    assert available()


# batch, height, width, in, wide, out, kernel, stride, relu6, skip, squeeze-and-excite's filters, expands
CASES = [
    (2, 8, 8, 16, 96, 24, 3, 1, False, False, 4, True),
    (2, 8, 8, 16, 96, 24, 3, 2, False, False, 4, True),
    (3, 7, 9, 24, 144, 24, 5, 1, False, True, 6, True),
    (3, 9, 7, 40, 240, 80, 5, 2, True, False, 0, True),
    (2, 15, 14, 32, 32, 16, 3, 1, False, False, 8, False),
    (2, 13, 13, 24, 24, 24, 3, 1, True, True, 0, False),  # channels that fill no panel
    (1, 28, 28, 40, 240, 40, 5, 1, False, True, 10, True),  # one image: threads share its rows and channels
    (5, 1, 1, 192, 1152, 320, 3, 1, False, False, 48, True),
    (2, 2, 3, 112, 672, 192, 5, 2, False, False, 28, True),
    (4, 33, 31, 24, 144, 40, 5, 2, False, False, 6, True),
]


def _activation(relu6):
    return (lambda x: jnp.minimum(jnp.maximum(x, 0), 6)) if relu6 else jax.nn.swish


def _first(shape, inputs, expand, expand_bias, taps):
    if expand.shape[0]:
        inputs = _activation(shape.relu6)(jnp.einsum("nhwi,ic->nhwc", inputs, expand) + expand_bias)
    return native_conv(inputs, taps[:, :, None, :], shape.stride, groups=taps.shape[-1])


def _second(shape, depthwise, scale, bias, excite, project):
    values = _activation(shape.relu6)(depthwise * scale + bias)
    if excite[0].shape[1]:
        reduced = jax.nn.swish(values.mean((1, 2)) @ excite[0] + excite[1])
        values = values * jax.nn.sigmoid(reduced @ excite[2] + excite[3])[:, None, None]
    return values @ project


def _operands(case):
    batch, height, width, channels, wide, out, kernel, stride, _, _, filters, expands = case
    rng = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return rng.normal(size=shape) * scale

    first = [
        normal(batch, height, width, channels),
        normal(channels, wide, scale=channels**-0.5) if expands else np.zeros((0, wide)),
        normal(wide, scale=0.3),
        normal(kernel, kernel, wide, scale=1 / kernel),
    ]
    excite = [normal(wide, filters, scale=wide**-0.5), normal(filters), normal(filters, wide, scale=0.3), normal(wide)]
    rest = [normal(wide, scale=0.3), normal(wide, out, scale=wide**-0.5), normal(out), rng.uniform(size=batch)]
    return (first, excite, rest), normal(batch, -(-height // stride), -(-width // stride), out)


def _pull(function, operands, cotangent):
    outputs, pull = jax.vjp(function, *operands)
    return jax.tree.leaves((outputs, pull(cotangent)))


def _far(kernels, exact, operands, cotangent):
    """The largest difference of any output or gradient, of that array's largest value."""
    single = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), (operands, cotangent))
    ours = [np.asarray(array) for array in _pull(kernels, *single)]
    with jax.enable_x64(True):
        double = jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), (operands, cotangent))
        expected = [np.asarray(array) for array in _pull(exact, *double)]
    assert [array.shape for array in ours] == [array.shape for array in expected]
    pairs = [(a, b) for a, b in zip(ours, expected, strict=True) if a.size]
    return max(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30) for a, b in pairs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_block_with_still_batch_norm(case):
    shape = blocks.Shape(case[6], case[7], case[8], case[9])
    operands, cotangent = _operands(case)

    def kernels(first, excite, rest):
        bias, project, project_bias, keep = rest
        keep = jax.lax.stop_gradient(keep)
        return blocks.block(shape, *first, bias, blocks.Excite(*excite), project, project_bias, keep)

    def exact(first, excite, rest):
        bias, project, project_bias, keep = rest
        branch = _second(shape, _first(shape, *first), 1.0, bias, excite, project) + project_bias
        branch = branch * jax.lax.stop_gradient(keep)[:, None, None, None]
        return branch + first[0] if shape.skip else branch

    assert _far(kernels, exact, operands, cotangent) < 2e-6


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_halves_with_the_batchs_statistics_between_them(case):
    shape = blocks.Shape(case[6], case[7], case[8])
    operands, cotangent = _operands(case)

    def kernels(first, excite, rest):
        depthwise, mean, var = blocks.first_half(shape, *first)
        factor = jax.lax.rsqrt(var + 1e-3)
        bias = rest[0] - mean * factor
        return blocks.second_half(depthwise, factor, bias, blocks.Excite(*excite), rest[1], relu6=shape.relu6)

    def exact(first, excite, rest):
        depthwise = _first(shape, *first)
        factor = jax.lax.rsqrt(depthwise.var((0, 1, 2)) + 1e-3)
        return _second(shape, depthwise - depthwise.mean((0, 1, 2)), factor, rest[0], excite, rest[1])

    assert _far(kernels, exact, operands, cotangent) < 8e-6


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (3, 64, 64, 3)) * 255


@pytest.mark.parametrize("variant", ["b0", "lite0"])
@pytest.mark.parametrize("update", [False, True])
def test_a_network_is_the_same_by_kernels_and_by_xla(variant, update, images):
    found = {}
    for lowering in ("kernels", "platform"):
        model = create_model(variant, num_classes=5, lowering=lowering)
        # A gradient jumps by some per cent where rounding moves one value over a corner of ReLU6: far from both.
        variables = _variables(model, scale=0.5, bias=3.0) if variant == "lite0" else _variables(model)

        def loss_of(params, images, model=model, variables=variables):
            logits, updated = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                update_batch_norm=update,
                key=jax.random.key(7),
                mutable=["batch_stats"],
            )
            return jnp.sum(jnp.square(logits - 1.0) * jnp.arange(5)), (logits, updated)

        gradients = jax.jit(jax.grad(loss_of, (0, 1), has_aux=True), compiler_options=synthetic.QUICK_COMPILE)
        found[lowering] = (gradients(variables["params"], images), "effnet_jax_" in _text(gradients, variables, images))
    assert found["kernels"][1] and not found["platform"][1]
    (ours, (logits, updated)), (theirs, (expected, expected_updated)) = found["kernels"][0], found["platform"][0]
    # Statistics of few pixels carry rounding on.
    share = 2e-3 if update and variant == "b0" else 3e-5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=share * float(jnp.abs(expected).max()))
    for a, b in zip(jax.tree.leaves(updated), jax.tree.leaves(expected_updated), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    whole = _norm(theirs)
    assert _norm(jax.tree.map(jnp.subtract, ours, theirs)) <= share * whole
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert _norm(a - b) <= 5 * share * max(_norm(b), 1e-2 * whole)


def _norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))))


def _variables(model, scale=1.0, bias=0.0):
    """Plausible values without a compilation: kernels small, statistics not those that batch norm starts with.

    `scale` and `bias` are those of batch norm, of the classifier too.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(3)

    def value(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return jnp.asarray(rng.normal(size=leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5, jnp.float32)
        near = {"scale": scale, "bias": bias, "var": 1.0}.get(name, 0.0)
        return jnp.asarray(near + 0.1 * rng.uniform(-1, 1, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


def _text(gradients, variables, images):
    return gradients.lower(variables["params"], images).as_text()


def test_the_same_numbers_every_time_and_for_each_image_alone(images):
    model = create_model("b0", num_classes=5, lowering="kernels")
    variables = _variables(model)
    apply = jax.jit(model.apply)
    together = apply(variables, images)
    np.testing.assert_array_equal(together, apply(variables, images))
    alone = jnp.concatenate([apply(variables, images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    mapped = jax.jit(jax.vmap(lambda image: model.apply(variables, image[None])[0]))(images)
    np.testing.assert_allclose(mapped, together, rtol=1e-5, atol=1e-6)


def test_what_is_no_number_stays_none(images):
    model = create_model("b0", num_classes=5, lowering="kernels")
    logits = jax.jit(model.apply)(_variables(model), images.at[1, 3, 4, 0].set(jnp.nan))
    assert np.isnan(logits[1]).all() and np.isfinite(logits[np.array([0, 2])]).all()


def test_an_empty_batch_is_one():
    model = create_model("b0", num_classes=5, lowering="kernels")
    variables = _variables(model)

    def loss_of(params, images):
        return model.apply({**variables, "params": params}, images).sum()

    gradients = jax.jit(jax.grad(loss_of))(variables["params"], jnp.zeros((0, 64, 64, 3)))
    assert not any(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))


def test_statistics_of_several_devices_are_refused():
    model = create_model("b0", num_classes=5, lowering="kernels", batch_norm_axis="devices")
    with pytest.raises(ConfigError, match="batch norm of one device"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
