"""Weights dirs: what goes in comes out, or an error says what is damaged."""

import dataclasses
import errno
import gc
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from effnet_jax.errors import WeightsError
from effnet_jax.model.variants import VARIANTS
from effnet_jax.trees import nest
from effnet_jax.weights import names
from effnet_jax.weights.metadata import METADATA_FILE, Metadata, imagenet_class_names
from effnet_jax.weights.store import load_weights, read_weights, write_weights

# orbax reads all leaves at once and closes its event loop at the first failure; the later ones are reported, without
# harm, when they are garbage-collected, which may be in a later test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

METADATA = Metadata(
    variant="lite0",
    family="lite",
    normalization="lite",
    crop="pad32",
    resolution=224,
    num_classes=5,
    class_names=("a", "b", "c", "d", "é"),
    source={"name": "x"},
)


def make_variables(variant: str = "lite0", num_classes: int = 5) -> dict:
    random = np.random.default_rng(0)
    shapes = names.parameter_shapes(VARIANTS[variant], num_classes)
    return nest({path: random.random(shape, np.float32) for path, shape in shapes.items()})


@pytest.fixture(scope="module")
def variables() -> dict:
    return make_variables()


@pytest.fixture(scope="module")
def written(tmp_path_factory, variables) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0"
    write_weights(path, variables, METADATA)
    return path


@pytest.fixture
def damaged(written, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "damaged"))


def assert_equal(found: dict, expected: dict) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_round_trip(written, variables):
    found, metadata = read_weights(written)
    assert_equal(found, variables)
    assert dataclasses.replace(metadata, versions={}, checksums={}) == METADATA
    assert "jax" in metadata.versions and len(metadata.checksums) == 247
    assert sorted(item.name for item in written.iterdir()) == [METADATA_FILE, "variables"]
    assert [item.name for item in written.parent.iterdir()] == ["lite0"]


def test_arrays_sharded_over_devices(tmp_path, variables):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(leaf):
        axis = "data" if leaf.shape and leaf.shape[0] % 8 == 0 else None
        spec = jax.sharding.PartitionSpec(axis) if axis else jax.sharding.PartitionSpec()
        return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

    write_weights(tmp_path / "w", jax.tree.map(place, variables), METADATA)
    found, _ = read_weights(tmp_path / "w")
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert_equal(found, variables)


def test_flipped_bits_are_errors(damaged):
    """A flip in the numbers names the leaf; one in orbax's own tables is an error too, or touches no number."""
    (data,) = [file for file in (damaged / "variables").rglob("*") if file.is_file() and file.stat().st_size > 5e6][:1]
    whole = data.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(8):
        flipped = bytearray(whole)
        flipped[random.integers(len(whole))] ^= 1 << random.integers(8)
        data.write_bytes(flipped)
        with pytest.raises(
            WeightsError, match=r"is damaged.*(the checksum of (params|batch_stats)/\S+ is wrong|\(.*\))"
        ):
            read_weights(damaged)
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="is damaged"):
        read_weights(damaged)
    gc.collect()


def test_a_flipped_bit_names_its_leaf(damaged, variables):
    raw = variables["params"]["block4b"]["expand_conv"]["kernel"].tobytes()
    for data in (damaged / "variables").rglob("*"):
        content = bytearray(data.read_bytes()) if data.is_file() else bytearray()
        if (start := content.find(raw)) >= 0:
            content[start + 1000] ^= 1
            data.write_bytes(content)
            break
    with pytest.raises(WeightsError, match="the checksum of params/block4b/expand_conv/kernel is wrong; restore"):
        read_weights(damaged)


def test_missing_parts(damaged):
    (damaged / "variables" / "manifest.ocdbt").unlink()
    with pytest.raises(WeightsError, match="is damaged"):
        read_weights(damaged)
    shutil.rmtree(damaged / "variables")
    with pytest.raises(WeightsError, match="variables/ is missing"):
        read_weights(damaged)


def test_what_is_no_weights_dir(written, tmp_path):
    with pytest.raises(WeightsError, match=r"no weights dir .*effnet_jax.port"):
        read_weights(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="is no weights dir"):
        read_weights(tmp_path / "empty")
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(WeightsError, match="is a file, not a weights dir: port it first"):
        read_weights(tmp_path / "model.ckpt")
    shutil.copytree(written, tmp_path / "run" / "weights")
    with pytest.raises(WeightsError, match=r"is a run dir: its weights dir is .*run/weights"):
        read_weights(tmp_path / "run")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.update(format=2), "of format 2, .* up to 1: upgrade"),
        (lambda m: m.pop("format"), "damaged .*format is None"),
        (lambda m: m.pop("variant"), "damaged .*variant"),
        (lambda m: m.update(colour="red"), "damaged .*colour"),
        (lambda m: m.update(variant="b99"), "damaged .*its variant is 'b99'"),
        (lambda m: m.update(normalization=3), "damaged .*its normalization is 3"),
        (lambda m: m.update(num_classes="5"), "damaged .*its num_classes is '5'"),
        (lambda m: m.update(ema="yes"), "damaged .*its ema is 'yes'"),
        (lambda m: m.update(class_names=["a"]), "1 class names for 5 classes"),
        (lambda m: m.update(class_names=[1, 2, 3, 4, 5]), "a class name is no text"),
        (lambda m: m.update(source=None), "damaged .*its source is None"),
        (lambda m: m.update(num_classes=6, class_names=[]), r"classifier/kernel is \(1280, 5\) instead of \(1280, 6\)"),
        (lambda m: m.update(variant="lite1"), "its checksums are not those of lite1"),
        (lambda m: m["checksums"].pop("params/stem/conv/kernel"), "its checksums are not those of lite0"),
    ],
)
def test_damaged_metadata(damaged, change, message):
    file = damaged / METADATA_FILE
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=message):
        read_weights(damaged)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", pytest.param(b"[" * 100_000, id="deep")])
def test_metadata_that_is_no_json(damaged, content):
    (damaged / METADATA_FILE).write_bytes(content)
    with pytest.raises(WeightsError, match=r"metadata\.json is damaged"):
        read_weights(damaged)


def test_an_output_that_exists_is_left_alone(written, variables):
    before = (written / METADATA_FILE).read_bytes()
    with pytest.raises(WeightsError, match="exists already: give another name, or delete it first"):
        write_weights(written, variables, METADATA)
    assert (written / METADATA_FILE).read_bytes() == before


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk, and 14 MB are needed"),
        (ValueError("RESOURCE_EXHAUSTED: write: No space left on device"), "no space left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
def test_a_full_disk_leaves_nothing_behind(tmp_path, variables, monkeypatch, error, message):
    def fail(self, directory, *arguments, **options):
        Path(directory).mkdir()
        (Path(directory) / "half").touch()
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(WeightsError, match=message):
        write_weights(tmp_path / "w", variables, METADATA)
    assert not list(tmp_path.iterdir())


def test_what_an_earlier_stopped_write_left_is_replaced(tmp_path, variables):
    (tmp_path / ".w.partial").mkdir()
    (tmp_path / ".w.partial" / "junk").touch()
    write_weights(tmp_path / "w", variables, METADATA)
    assert [item.name for item in tmp_path.iterdir()] == ["w"]
    assert not (tmp_path / "w" / "junk").exists()


def test_arrays_that_are_not_the_variants(tmp_path, variables):
    short = {**variables, "params": {key: value for key, value in variables["params"].items() if key != "top"}}
    with pytest.raises(WeightsError, match=r"params/top/conv/kernel \(missing\)"):
        write_weights(tmp_path / "w", short, METADATA)
    with pytest.raises(WeightsError, match=r"classifier/kernel is \(1280, 5\) instead of \(1280, 7\)"):
        write_weights(tmp_path / "w", variables, dataclasses.replace(METADATA, num_classes=7, class_names=()))
    assert not list(tmp_path.iterdir())


def test_load_weights_as_stored(written, variables):
    model, found, metadata = load_weights(written)
    assert_equal(found, variables)
    assert (model.num_classes, model.normalization, metadata.num_classes) == (5, "lite", 5)
    assert_equal(load_weights(written, 5)[1], variables)


def test_another_number_of_classes(written, variables):
    model, found, metadata = load_weights(written, 100)
    assert (model.num_classes, metadata.num_classes, metadata.class_names) == (100, 100, ())
    kernel = found["params"]["classifier"]["kernel"]
    assert kernel.shape == (1280, 100) and found["params"]["classifier"]["bias"].tolist() == [0] * 100
    assert not kernel.any()  # as training begins: every class is as likely
    assert_equal(found["batch_stats"], variables["batch_stats"])
    assert_equal(found["params"]["top"], variables["params"]["top"])


def test_settings_of_the_model(written):
    model, _, _ = load_weights(written, dtype="bfloat16", lowering="native")
    assert (str(model.dtype), model.lowering) == ("bfloat16", "native")


def test_another_number_of_classes_without_being_asked(written):
    with pytest.raises(WeightsError, match=r"has 5 classes, not 100 classes: allow a new classifier"):
        load_weights(written, 100, new_classifier=False)


def test_without_a_classifier(tmp_path):
    variables = make_variables(num_classes=0)
    write_weights(tmp_path / "w", variables, dataclasses.replace(METADATA, num_classes=0, class_names=()))
    model, found, _ = load_weights(tmp_path / "w")
    assert "classifier" not in found["params"] and not model.include_top
    assert jax.eval_shape(model.apply, found, np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 1280)
    model, found, _ = load_weights(tmp_path / "w", 3)
    assert jax.eval_shape(model.apply, found, np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 3)
    with pytest.raises(WeightsError, match="has no classifier, not 3 classes"):
        load_weights(tmp_path / "w", 3, new_classifier=False)


def test_imagenet_class_names():
    found = imagenet_class_names(1000)
    assert len(found) == len(set(found)) == 1000
    known = {0: "tench", 388: "giant panda", 442: "bell cote", 483: "castle", 610: "jersey", 698: "palace"}
    assert {index: found[index] for index in known} == known and found[999] == "toilet tissue"
    assert imagenet_class_names(1001) == ("background", *found)
    assert imagenet_class_names(10) == ()
