"""The operations of AutoAugment and RandAugment against the original's outputs, Pillow, and each other."""

import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from effnet_jax.data import operations
from effnet_jax.data.draws import draw_policy, draw_randaugment, draw_trivialaugment
from effnet_jax.data.operations import KIND_OF, KINDS, Drawn, apply, prepare
from effnet_jax.data.policies import (
    AUTOAUGMENT_SCALE,
    OPERATIONS,
    POLICIES,
    RANDAUGMENT_SCALE,
    TRIVIAL_OPERATIONS,
    level_argument,
    policy_scale,
    trivial_arguments,
)

run = jax.jit(lambda planes, drawn: apply(planes, [drawn]))


def drawn(operation, argument, size, centre=(0.5, 0.5)):
    kind, value, matrix = prepare(operation, argument, *size)
    return Drawn(jnp.int32(kind), jnp.float32(value), jnp.asarray(matrix), jnp.asarray(centre, jnp.float32))


def result(image, operation, argument=0.0, centre_pixel=(13, 21)):
    """Applies one operation: uint8 [h, w, 3] -> the same."""
    size = image.shape[:2]
    centre = [(pixel + 0.5) / side for pixel, side in zip(centre_pixel, size, strict=True)]
    planes = run(jnp.asarray(image.transpose(2, 0, 1)), drawn(operation, argument, size, centre))
    return np.asarray(planes).transpose(1, 2, 0)


@pytest.fixture(scope="module")
def tables(golden_file):
    return json.loads(golden_file("augment.json").read_text())


def test_every_operation_at_every_level_equals_the_original(golden_file, tables):
    arrays = np.load(golden_file("augment_golden.npz"))
    seen = Counter()
    for key in arrays.files:
        name, *what = key.split("/")
        if name == "image" or what[0] == "direct":
            continue
        image = arrays[f"image/{name}"]
        if what[0] == "v0":
            output = image
            for operation, _, level in POLICIES["v0"][int(what[1])]:
                output = result(output, operation, level_argument(operation, level, AUTOAUGMENT_SCALE))
        else:
            operation = what[0].partition(".")[0]
            arguments = tables["golden_args"][what[0]].get(what[1], []) if len(what) > 1 else []
            output = result(image, operation, arguments[0] if arguments else 0.0)
        assert np.array_equal(output, arrays[key]), key
        seen[what[0].partition(".")[0]] += 1
    assert set(seen) == {*OPERATIONS, "v0"}
    assert sum(seen.values()) >= 160


def test_operations_called_directly_equal_the_original(golden_file):
    arrays = np.load(golden_file("augment_golden.npz"))
    names = {"brightness": "Brightness", "color": "Color", "contrast": "Contrast", "sharpness": "Sharpness"}
    names |= {
        "posterize": "Posterize",
        "solarize": "Solarize",
        "translate_x": "TranslateX",
        "translate_y": "TranslateY",
    }
    count = 0
    for key in arrays.files:
        image, _, call = key.partition("/direct/")
        if not call:
            continue
        function, _, text = call.rstrip(")").partition("(")
        if function == "cutout":
            values = dict(pair.split("=") for pair in text.split(","))
            output = result(
                arrays[f"image/{image}"], "Cutout", int(values["pad"]), (int(values["cy"]), int(values["cx"]))
            )
        else:
            output = result(arrays[f"image/{image}"], names[function], float(text))
        assert np.array_equal(output, arrays[key]), key
        count += 1
    assert count >= 36


def test_policies_and_level_arguments_are_the_originals(tables):
    for name, rows in tables["policies"].items():
        if name in POLICIES:
            assert [[list(step) for step in row] for row in POLICIES[name]] == rows
    assert list(OPERATIONS) == tables["randaugment_ops"]
    scales = {"autoaugment": AUTOAUGMENT_SCALE, "randaugment": RANDAUGMENT_SCALE, "": AUTOAUGMENT_SCALE}
    for operation, levels in tables["level_to_args"].items():
        name, _, which = operation.partition(".")
        for level, arguments in levels.items():
            assert [level_argument(name, int(level), scales[which])] == (arguments or [0.0]), (operation, level)


def test_the_cifar10_policy_is_complete_and_never_moves_the_view_away():
    assert len(POLICIES["cifar10"]) == 25
    assert {step.operation for row in POLICIES["cifar10"] for step in row} <= set(OPERATIONS)
    scale = policy_scale("cifar10", 224)
    assert level_argument("TranslateY", 9, scale) == pytest.approx(0.9 * 70)
    # The higher the level, the more of the image is inverted, as in the code that the policy was found with.
    assert level_argument("Solarize", 2, scale) == 205 and level_argument("Solarize", 8, scale) == 52


def test_constants_in_pixels_are_the_originals_but_shrink_with_small_images():
    assert policy_scale("v0", 224) == AUTOAUGMENT_SCALE and policy_scale("", 600) == RANDAUGMENT_SCALE
    assert policy_scale("", 32).translate == pytest.approx(100 * 32 / 224)


IMAGE = np.random.default_rng(0).integers(0, 256, (24, 30, 3)).astype(np.uint8)
PILLOW = Image.fromarray(IMAGE)


@pytest.mark.parametrize(
    ("operation", "argument", "expected", "levels"),
    [
        ("Invert", 0, ImageOps.invert(PILLOW), 0),
        ("Posterize", 3, ImageOps.posterize(PILLOW, 3), 0),
        ("Solarize", 90, ImageOps.solarize(PILLOW, 90), 0),
        ("AutoContrast", 0, ImageOps.autocontrast(Image.fromarray(IMAGE // 2 + 40)), 1),
        ("Equalize", 0, ImageOps.equalize(PILLOW), 0),
        ("Brightness", 1.7, ImageEnhance.Brightness(PILLOW).enhance(1.7), 1),
        ("Brightness", 0.4, ImageEnhance.Brightness(PILLOW).enhance(0.4), 1),
        ("Color", 0.3, ImageEnhance.Color(PILLOW).enhance(0.3), 1),
        ("Color", 1.6, ImageEnhance.Color(PILLOW).enhance(1.6), 2),
        ("Sharpness", 0.2, ImageEnhance.Sharpness(PILLOW).enhance(0.2), 1),
        ("Sharpness", 1.8, ImageEnhance.Sharpness(PILLOW).enhance(1.8), 2),
    ],
)
def test_operations_agree_with_pillow_where_the_definitions_do(operation, argument, expected, levels):
    image = IMAGE // 2 + 40 if operation == "AutoContrast" else IMAGE
    difference = np.abs(result(image, operation, argument).astype(int) - np.asarray(expected))
    assert difference.max() <= levels


@pytest.mark.parametrize("operation", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_geometric_operations_agree_with_pillow(operation):
    argument = {"Rotate": 20.0, "ShearX": 0.3, "ShearY": -0.2, "TranslateX": 7.0, "TranslateY": -4.0}[operation]
    _, _, matrix = prepare(operation, argument, *IMAGE.shape[:2])
    corners = np.array(matrix, float).reshape(2, 3)
    corners[:, 2] += 0.5 - corners[:, :2].sum(1) * 0.5  # Pillow counts from pixel corners
    expected = PILLOW.transform(
        PILLOW.size, Image.Transform.AFFINE, corners.reshape(-1), Image.Resampling.NEAREST, fillcolor=(128, 128, 128)
    )
    differs = np.any(result(IMAGE, operation, argument) != np.asarray(expected), axis=-1)
    assert differs.mean() < 0.005  # ties between two pixels are broken otherwise


def test_a_quarter_turn_is_numpys():
    image = np.random.default_rng(1).integers(0, 256, (25, 25, 3)).astype(np.uint8)
    assert np.array_equal(result(image, "Rotate", 90.0), np.rot90(image))


def test_taking_examples_in_turn_equals_taking_them_at_once():
    names = [*OPERATIONS, "Identity"]
    size = (20, 24)
    planes = np.random.default_rng(2).integers(0, 256, (len(names), 3, *size)).astype(np.uint8)
    one_each = [drawn(name, level_argument(name, 9, RANDAUGMENT_SCALE), size, (0.3, 0.6)) for name in names]
    batch = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_each)] * 2
    in_turn = jax.jit(operations._apply_in_turn)(planes, batch)
    at_once = jax.jit(operations._apply_at_once)(planes, batch)
    assert np.array_equal(in_turn, at_once)
    changed = [name for name, before, after in zip(names, planes, in_turn, strict=True) if np.any(before != after)]
    assert set(changed) == set(OPERATIONS) - {"Invert", "AutoContrast"}  # twice undoes one, the other had nothing to do


def test_histograms_and_tables_as_matrix_products_are_exact():
    levels = np.random.default_rng(3).integers(0, 256, (3, 5000)).astype(np.int32)
    levels[0] = 255
    expected = np.stack([np.bincount(row, minlength=256) for row in levels])
    for function in (operations._histograms_by_scatter, operations._histograms_by_product):
        assert np.array_equal(function(levels), expected)
    table = np.random.default_rng(4).integers(0, 256, (3, 256)).astype(np.int32)
    for function in (operations._looked_up_by_gather, operations._looked_up_by_product):
        assert np.array_equal(function(table, levels), np.take_along_axis(table, levels, axis=1))


def test_randaugment_draws_all_operations_alike_and_both_signs():
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: draw_randaugment(key, (32, 32), 2, 9, RANDAUGMENT_SCALE)))
    first, second = draw(keys)
    counts = Counter(KINDS[kind] for kind in np.asarray(first.kind))
    share = {kind: count / len(keys) for kind, count in counts.items()}
    assert share.pop("Geometric") == pytest.approx(5 / 16, abs=0.03)
    assert set(share) == {name for name in OPERATIONS if KINDS[KIND_OF[name]] != "Geometric"}
    assert all(value == pytest.approx(1 / 16, abs=0.015) for value in share.values())
    assert np.mean(np.asarray(first.kind) == np.asarray(second.kind)) < 0.2
    slopes = np.asarray(first.matrix)[:, 1]
    sheared = slopes[np.isclose(np.abs(slopes), 0.27)]
    assert np.mean(sheared > 0) == pytest.approx(0.5, abs=0.15)


def test_trivialaugments_arguments_are_those_of_its_wide_space():
    """Against the bins of `torchvision.transforms.TrivialAugmentWide`, which has them from the paper's code."""
    bins = np.arange(31)
    for operation, wanted in {
        "ShearX": np.linspace(0, 0.99, 31),
        "TranslateY": np.linspace(0, 32, 31),
        "Rotate": np.linspace(0, 135, 31),
    }.items():
        found = np.array([trivial_arguments(operation, strength) for strength in bins])
        np.testing.assert_allclose(found, np.stack([-wanted, wanted], 1), atol=1e-6)
    for operation in ("Brightness", "Color", "Contrast", "Sharpness"):
        found = np.array([trivial_arguments(operation, strength) for strength in bins])
        np.testing.assert_allclose(found, 1 + np.outer(np.linspace(0, 0.99, 31), [-1, 1]), atol=1e-6)
    bits = [trivial_arguments("Posterize", strength)[0] for strength in bins]
    assert bits == (8 - np.round(bins / (30 / 6))).astype(int).tolist()
    thresholds = [trivial_arguments("Solarize", strength)[1] for strength in bins]
    assert thresholds == np.linspace(255, 0, 31).astype(int).tolist()
    assert trivial_arguments("Equalize", 30) == trivial_arguments("Identity", 30) == (0.0, 0.0)


def test_trivialaugment_draws_one_operation_of_any_strength():
    keys = jax.random.split(jax.random.key(0), 4000)
    (one,) = jax.jit(jax.vmap(lambda key: draw_trivialaugment(key, (32, 32))))(keys)
    counts = Counter(KINDS[kind] for kind in np.asarray(one.kind))
    share = {kind: count / len(keys) for kind, count in counts.items()}
    assert share.pop("Geometric") == pytest.approx(5 / 14, abs=0.03)
    assert set(share) == {name for name in TRIVIAL_OPERATIONS if KINDS[KIND_OF[name]] != "Geometric"}
    assert all(value == pytest.approx(1 / 14, abs=0.015) for value in share.values())
    factors = np.asarray(one.argument)[np.asarray(one.kind) == KIND_OF["Brightness"]]
    assert len(np.unique(factors)) > 40 and factors.min() < 0.1 and factors.max() > 1.9


def test_a_policy_applies_each_step_with_its_probability():
    policy = ((("Invert", 0.25, 0), ("Equalize", 1.0, 0)),)
    steps = tuple(tuple(type(POLICIES["v0"][0][0])(*step) for step in row) for row in policy)
    keys = jax.random.split(jax.random.key(1), 4000)
    first, second = jax.jit(jax.vmap(lambda key: draw_policy(key, (32, 32), steps, AUTOAUGMENT_SCALE)))(keys)
    assert np.mean(np.asarray(first.kind) == KIND_OF["Invert"]) == pytest.approx(0.25, abs=0.03)
    assert np.all(np.asarray(second.kind) == KIND_OF["Equalize"])
