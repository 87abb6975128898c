import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from effnet_jax.errors import ConfigError, VariantError
from effnet_jax.model.efficientnet import create_model, pool
from effnet_jax.model.variants import VARIANTS
from effnet_jax.weights import names
from tests import synthetic
from tests.model.test_variants import COUNTS

TOLERANCE = {False: 1e-5, True: 2e-5}  # of the largest golden value; True: the lite variants
SEEDS = {"raw": 0, "ema": 1}


def assert_close(value, golden, lite=False):
    value, golden = np.asarray(value), np.asarray(golden)
    value = value.reshape(golden.shape)  # the original's lite variants keep [N, 1, 1, C] after pooling
    difference = np.abs(value - golden).max() / np.abs(golden).max()
    assert difference <= TOLERANCE[lite], f"max difference {difference:.2e} of the largest value"


@pytest.fixture(scope="session")
def synthetic_b0():
    return {weights: synthetic.variables("b0", seed) for weights, seed in SEEDS.items()}


@pytest.fixture(scope="session", params=["platform", "kernels"])
def endpoints(request):
    """A function for each scaling, for B0: variables, images → every endpoint. All but the stem is compiled once."""

    @jax.jit
    def rest(variables, outputs):
        model, ends = create_model("b0", lowering=request.param), {}
        for unit in model.units[1:]:
            outputs = ends[unit] = model.apply(variables, outputs, first=unit, last=unit, method="run")
        return ends

    def build(scaling):
        model = create_model("b0", normalization=scaling, lowering=request.param)
        stem = jax.jit(functools.partial(model.apply, last="stem", method="run"))

        def run(variables, images):
            outputs = stem(variables, images)
            return {"stem": outputs, **rest(variables, outputs)}

        return run

    return {scaling: build(scaling) for scaling in ("imagenet", "advprop")}


def golden_endpoints(ends, variant="b0"):
    """Renames endpoints to the goldens' names."""
    blocks = [block.name for block in VARIANTS[variant].blocks]
    renamed = {f"block_{index}": ends[name] for index, name in enumerate(blocks)}
    renamed |= {"stem": ends["stem"], "features": ends[blocks[-1]], "head_1x1": ends["top"]}
    return renamed | {"pooled_features": pool(ends["top"]), "logits": ends["classifier"]}


def check_b0(arrays, prefix, synthetic_b0, endpoints, inputs):
    compared = 0
    for size in inputs:
        images = jnp.asarray(arrays[f"{prefix}images_{size}"])
        for scaling in ("imagenet", "advprop"):
            for weights in SEEDS:
                stem = f"{prefix}{size}/{scaling}/{weights}/"
                wanted = [key for key in arrays if key.startswith(stem)]
                ends = golden_endpoints(endpoints[scaling](synthetic_b0[weights], images))
                for key in wanted:
                    end = key.removeprefix(stem)
                    if end in ends:
                        assert_close(ends[end], arrays[key])
                        compared += 1
    return compared


def test_b0_equals_the_original_at_an_even_and_an_odd_size(golden, synthetic_b0, endpoints):
    arrays = np.load(golden / "model_golden.npz")
    assert check_b0(arrays, "b0/", synthetic_b0, endpoints, ("64", "75x97")) == 33


@pytest.mark.slow
def test_b0_equals_the_original_at_every_endpoint(shared, synthetic_b0, endpoints):
    arrays = np.load(shared / "golden" / "b0_golden.npz")
    assert check_b0(arrays, "", synthetic_b0, endpoints, ("64", "75x97", "224")) >= 110


def check_logits(arrays, prefix, variant, weights, images, golden_prefix, lowering="auto"):
    model = create_model(variant, lowering=lowering)
    ends = jax.jit(lambda variables, images: model.apply(variables, images, method="endpoints"))(
        synthetic.variables(variant, SEEDS[weights]), images
    )
    renamed, compared = golden_endpoints(ends, variant), 0
    for key in [key for key in arrays if key.startswith(f"{prefix}{golden_prefix}/")]:
        end = key.rsplit("/", 1)[-1]
        if end in renamed and "expansion_output" not in key:
            assert_close(renamed[end], arrays[key], VARIANTS[variant].lite)
            compared += 1
    return compared


@pytest.mark.parametrize("lowering", ["platform", "kernels"])
@pytest.mark.parametrize(
    ("variant", "size"), [("lite0", "64"), ("lite0", "75x97"), ("lite3", "64")], ids=lambda value: str(value)
)
def test_lite_equals_the_original(golden, variant, size, lowering):
    arrays = np.load(golden / "model_golden.npz")
    images = jnp.asarray(arrays[f"lite/images_{size}"])
    images = images if variant == "lite0" else images[:1]
    assert check_logits(arrays, "lite/", variant, "raw", images, f"{variant}/{size}/raw", lowering) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["platform", "kernels"])
@pytest.mark.parametrize("variant", ["lite0", "lite1", "lite2", "lite3", "lite4"])
def test_lite_equals_the_original_at_every_endpoint(shared, variant, lowering):
    arrays = np.load(shared / "golden" / "lite_golden.npz")
    for size in ("64", "75x97"):
        for weights in SEEDS:
            images = jnp.asarray(arrays[f"images_{size}"])
            images = images if variant == "lite0" else images[:1]
            if f"{variant}/{size}/{weights}/logits" in arrays:
                assert check_logits(arrays, "", variant, weights, images, f"{variant}/{size}/{weights}", lowering) >= 2


def test_b3_equals_the_original(golden):
    arrays = np.load(golden / "model_golden.npz")
    assert check_logits(arrays, "variants/", "b3", "raw", jnp.asarray(arrays["variants/images_64x96"]), "b3/raw") == 1


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["platform", "kernels"])
@pytest.mark.parametrize("variant", ["b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8"])
def test_larger_variants_equal_the_original(shared, variant, lowering):
    arrays = np.load(shared / "golden" / "variants_golden.npz")
    images = jnp.asarray(arrays["images_64x96"])
    for weights in SEEDS:
        if f"{variant}/{weights}/logits" in arrays:
            assert check_logits(arrays, "", variant, weights, images, f"{variant}/{weights}", lowering) == 2


# --- Shapes and counts. ---


def shapes_of(variant, **settings):
    model = create_model(variant, **settings)
    images = jnp.zeros((1, 64, 64, 3))
    return jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_and_paths_are_those_of_the_table(variant):
    variables = shapes_of(variant)
    parameters, statistics = (jax.tree.leaves(variables[kind]) for kind in ("params", "batch_stats"))
    counts = (
        sum(leaf.size for leaf in parameters),
        sum(leaf.size for leaf in statistics),
        len(parameters),
        len(statistics),
        len(VARIANTS[variant].blocks),
    )
    assert counts == COUNTS[variant]
    flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()}
    assert flat == names.parameter_shapes(VARIANTS[variant], 1000)
    assert set(variables["params"]) == set(VARIANTS[variant].units)


def test_without_top_there_is_no_classifier_and_pooling_is_a_choice():
    images = jax.random.randint(jax.random.key(0), (2, 48, 64, 3), 0, 256).astype(jnp.uint8)
    models = {pooling: create_model("lite0", include_top=False, pooling=pooling) for pooling in ("none", "avg", "max")}
    trunk = synthetic.variables("lite0", num_classes=0)

    @jax.jit  # together: the trunk that they share is compiled once
    def outputs(images):
        return {pooling: model.apply(trunk, images) for pooling, model in models.items()}

    found = outputs(images)
    features = found["none"]
    assert features.shape == (2, 2, 2, 1280)
    np.testing.assert_allclose(found["avg"], features.mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["max"], features.max((1, 2)), rtol=1e-5, atol=1e-6)


def test_run_in_two_parts_is_the_whole(synthetic_b0):
    model = create_model("b0")
    images = jax.random.randint(jax.random.key(0), (2, 33, 47, 3), 0, 256).astype(jnp.uint8)
    whole = jax.jit(model.apply)(synthetic_b0["raw"], images)

    @jax.jit
    def parts(variables, images):
        middle = model.apply(variables, images, last="block5c", method="run")
        pooled = pool(model.apply(variables, middle, first="block6a", last="top", method="run"))
        return model.apply(variables, pooled, first="classifier", method="run")

    np.testing.assert_allclose(parts(synthetic_b0["raw"], images), whole, rtol=1e-5, atol=1e-5)


def test_bfloat16_keeps_float32_parameters_and_logits(synthetic_b0):
    inputs = jax.random.normal(jax.random.key(0), (2, 2, 2, 192))
    logits, exact = (
        jax.jit(functools.partial(create_model("b0", dtype=dtype).apply, first="block6c", method="run"))(
            synthetic_b0["raw"], inputs
        )
        for dtype in ("bfloat16", "float32")
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of("b0", dtype="bfloat16"))} == {jnp.dtype("float32")}
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_initial_values_follow_the_original():
    model = create_model("b0")

    def initial(unit, inputs):
        return model.init(jax.random.key(0), jnp.zeros(inputs), first=unit, last=unit, method="run")

    variables = initial("block5a", (1, 2, 2, 80))
    block = variables["params"]["block5a"]
    assert np.std(block["depthwise_conv"]["kernel"]) == pytest.approx(math.sqrt(2 / 25), rel=0.05)
    assert np.std(block["expand_conv"]["kernel"]) == pytest.approx(math.sqrt(2 / 480), rel=0.05)
    kernel = np.asarray(initial("classifier", (1, 1280))["params"]["classifier"]["kernel"])
    assert np.abs(kernel).max() <= 1000**-0.5
    assert np.std(kernel) == pytest.approx(1000**-0.5 / math.sqrt(3), rel=0.02)
    assert np.all(block["expand_bn"]["scale"] == 1)
    assert np.all(variables["batch_stats"]["block5a"]["expand_bn"]["var"] == 1)


# --- Training mode. ---


@pytest.fixture(scope="module")
def noisy():
    """A function of (example keys, units): lite0's logits in training."""
    model = create_model("lite0", num_classes=7)
    variables = synthetic.variables("lite0", num_classes=7)
    images = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3)) * 255

    @jax.jit
    def whole(keys, images):
        return model.apply(variables, images, train=True, key=keys)

    return model, variables, images, whole


def test_noise_belongs_to_the_example_not_to_its_place(noisy):
    _, _, images, whole = noisy
    keys = jax.random.split(jax.random.key(2), 3)
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(whole(keys, images)[order], whole(keys[order], images[order]), rtol=1e-5, atol=1e-6)
    assert np.abs(whole(keys, images) - whole(keys[order], images)).max() > 1e-3


def test_frozen_units_stay_as_in_inference_while_others_train(noisy):
    model, variables, images, _ = noisy
    units = ("block7a", "top", "classifier")

    @jax.jit
    def step(images):
        return model.apply(
            variables, images, train=units, update_batch_norm=units, key=jax.random.key(0), mutable=["batch_stats"]
        )[1]["batch_stats"]

    updated = step(images)
    for unit, layers in variables["batch_stats"].items():
        moved = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (layers, updated[unit])), strict=True)]
        assert all(moved) if unit in units else not any(moved), unit


def test_remat_computes_blocks_again_and_the_same_gradients():
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3)) * 255
    variables = synthetic.variables("lite0", num_classes=3)
    units = ("block6d", "block7a")  # a part of the network compiles in a part of the time
    gradients, products = [], []
    for remat in (False, True):
        model = create_model("lite0", num_classes=3, remat=remat)

        def gradient(variables, model=model):
            def loss(blocks):
                logits, _ = model.apply(
                    {**variables, "params": {**variables["params"], **blocks}},
                    images,
                    train=units,
                    update_batch_norm=units,
                    key=jax.random.key(3),
                    mutable=["batch_stats"],
                )
                return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

            return jax.grad(loss)({unit: variables["params"][unit] for unit in units})

        lowered = jax.jit(gradient).lower(variables)
        products.append(lowered.as_text().count("stablehlo.dot_general"))
        gradients.append(lowered.compile()(variables))
    assert products[1] > products[0]  # the blocks run once more
    for plain, rematerialised in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(rematerialised, plain, rtol=1e-3, atol=1e-4 * float(jnp.abs(plain).max() + 1e-6))


# --- Mistakes. ---


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"variant": "b9"}, VariantError, "did you mean"),
        ({"normalization": "imagnet"}, VariantError, "'imagenet'"),
        ({"pooling": "mean"}, ConfigError, "choose from|did you mean"),
        ({"pooling": "none"}, ConfigError, "include_top=False"),
        ({"dtype": "float16"}, ConfigError, "float16 overflows"),
        ({"dtype": "bfloat61"}, ConfigError, "did you mean 'bfloat16'"),
        ({"num_classes": 0}, ConfigError, "include_top=False"),
        ({"dropout": 1.0}, ConfigError, "dropout"),
    ],
)
def test_impossible_models(settings, error, message):
    with pytest.raises(error, match=message):
        create_model(**{"variant": "b0", **settings})


def test_impossible_calls(noisy):
    model, variables, images, _ = noisy
    with pytest.raises(VariantError, match="swap them"):
        model.apply(variables, images, first="top", last="stem", method="run")
    with pytest.raises(VariantError, match="'block6a'"):
        model.apply(variables, images, last="block6aa", method="run")
    with pytest.raises(ConfigError, match="leading axis"):
        model.apply(variables, images[0])
    with pytest.raises(ConfigError, match="key="):
        model.apply(variables, images, train=True)


def test_the_native_lowering_is_the_same_function_and_has_forward_derivatives():
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)), jnp.float32)
    platform, native = (create_model("b0", num_classes=5, lowering=form) for form in ("platform", "native"))
    variables = synthetic.variables("b0", num_classes=5)

    def gradients(model):
        def loss(params):
            return jnp.sum(model.apply({**variables, "params": params}, images))

        return jax.jit(jax.value_and_grad(loss), compiler_options=synthetic.QUICK_COMPILE)(variables["params"])

    (ours, expected), (theirs, found) = gradients(platform), gradients(native)
    assert abs(ours - theirs) <= 1e-5 * abs(ours)
    norms = [
        np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))
        for tree in (expected, jax.tree.map(jnp.subtract, expected, found))
    ]
    assert norms[1] <= 1e-5 * norms[0]

    def logits(shift):
        return native.apply(variables, images + shift)

    slopes = jax.jit(lambda shift: jax.jvp(logits, (shift,), (1.0,)), compiler_options=synthetic.QUICK_COMPILE)
    (high, _), (_, slope), (low, _) = (slopes(shift) for shift in (0.5, 0.0, -0.5))
    difference = high - low
    assert np.abs(slope - difference).max() <= 0.02 * np.abs(difference).max()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda shift: platform.apply(variables, images + shift), (0.0,), (1.0,))
    with pytest.raises(ConfigError, match="did you mean 'native'"):
        create_model("b0", lowering="nativ")


def test_some_endpoints_and_the_levels_of_a_variant():
    images = jnp.zeros((1, 64, 64, 3))
    model = create_model("b0", num_classes=5)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    levels = VARIANTS["b0"].levels
    assert [level.stride for level in levels] == [2, 4, 8, 16, 32]
    units = [level.unit for level in levels]
    ends = jax.eval_shape(functools.partial(model.apply, method="endpoints", units=units), variables, images)
    assert list(ends) == units
    for level in levels:
        assert ends[level.unit].shape == (1, 64 // level.stride, 64 // level.stride, level.channels)
    with pytest.raises(VariantError, match="no unit 'block9a'"):
        model.apply(variables, images, method="endpoints", units=["block9a"])


def test_under_nnx():
    from flax import nnx
    from flax.nnx import bridge

    images = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)), jnp.float32)
    linen = create_model("lite0", num_classes=5)
    variables = synthetic.variables("lite0", num_classes=5)

    model = bridge.lazy_init(bridge.ToNNX(linen, rngs=nnx.Rngs(0)), images)
    nnx.update(model, bridge.variables.linen_vars_to_nnx_attrs(variables))
    logits = nnx.jit(lambda model, images: model(images))(model, images)

    expected = jax.jit(linen.apply)(variables, images)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
