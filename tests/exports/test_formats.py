"""Every format: what is written comes back bit for bit, and says how pixels are scaled."""

import dataclasses
import errno
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from effnet_jax.errors import CheckpointError, ConfigError, DiskError, VariantError, WeightsError
from effnet_jax.export import FORMATS, export, main
from effnet_jax.exports import keras
from effnet_jax.model.variants import NORMALIZATIONS
from effnet_jax.weights.checkpoint import needs
from effnet_jax.weights.port import port_checkpoint
from effnet_jax.weights.store import load_weights, read_weights, write_weights

pytest.importorskip("safetensors")
pytest.importorskip("h5py")

FILES = {"timm": "", "keras": "model.weights.h5", "tf1": ""}


@pytest.mark.parametrize("variant", ["b0", "lite0", pytest.param("b3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FILES)
def test_a_round_trip_gives_the_same_bits(weights, tmp_path, variant, form):
    if (variant, form) == ("lite0", "keras"):
        with pytest.raises(WeightsError, match="lite0, which keras.applications does not have"):
            export(weights(variant), tmp_path / "out", form=form)
        assert not list(tmp_path.iterdir())
        return
    export(weights(variant), tmp_path / "out", form=form)
    metadata = port_checkpoint(tmp_path / "out" / FILES[form], tmp_path / "back", family=family(variant, form))
    (ours, known), (theirs, _) = read_weights(weights(variant)), read_weights(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert (metadata.variant, metadata.num_classes) == (known.variant, known.num_classes)
    assert metadata.normalization == known.normalization
    assert metadata.source["layout"] == {"keras": "keras3"}.get(form, form)


def family(variant, form):
    """Files of timm and Keras say how pixels are scaled; TensorFlow's have to be told."""
    return {"b0": "imagenet", "b3": "imagenet"}.get(variant) if form == "tf1" else None


def test_timms_config_says_what_the_weights_ask_for(weights, tmp_path):
    export(weights("b0"), tmp_path / "out", form="timm")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "tf_efficientnet_b0" and config["num_classes"] == 1000
    given = config["pretrained_cfg"]
    assert (given["mean"], given["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert given["crop_pct"] == 0.875 and given["input_size"] == [3, 224, 224]
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and "mean 0.485, 0.456, 0.406, divided by 0.229, 0.224, 0.225" in card


def test_a_file_of_another_network_of_timm_is_refused(weights, tmp_path):
    """The same tensors, other padding and epsilon: what no name tells, its config.json does."""
    export(weights("b0"), tmp_path / "out", form="timm")
    path = tmp_path / "out" / "config.json"
    path.write_text(path.read_text().replace("tf_efficientnet_b0", "efficientnet_b0"))
    with pytest.raises(CheckpointError, match="timm's efficientnet_b0: only tf_efficientnet_"):
        port_checkpoint(tmp_path / "out", tmp_path / "back")


def edited(folder, **keys):
    """Changes timm's config.json; keys of `pretrained_cfg` are those with an underscore before them."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in keys.items():
        (config["pretrained_cfg"] if key[0] == "_" else config)[key.lstrip("_")] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_a_fine_tuned_model_of_timm_is_not_the_published_one(weights, tmp_path):
    """timm keeps the tag of the weights that a training began with."""
    out = tmp_path / "out"
    export(weights("b0"), out, form="timm")
    edited(out, _tag="ns_jft_in1k")
    assert port_checkpoint(out, tmp_path / "published").source["published"] == "noisy_student_b0"
    for number, keys in enumerate(
        (
            {"_mean": [0.5] * 3, "_std": [0.5] * 3},
            {"_input_size": [3, 320, 320]},
            {"_crop_pct": 1.0},
            {"label_names": [f"mine {i}" for i in range(1000)]},
        )
    ):
        export(weights("b0"), tmp_path / f"{number}", form="timm")
        edited(tmp_path / f"{number}", _tag="ns_jft_in1k", **keys)
        metadata = port_checkpoint(tmp_path / f"{number}", tmp_path / f"back{number}")
        assert metadata.source["published"] == ""
        names = keys.get("label_names", [""])
        assert (metadata.class_names or ("",))[0] == names[0]
        assert metadata.normalization == ("advprop" if "_mean" in keys else "imagenet")
        assert metadata.resolution == (320 if "_input_size" in keys else 224)


def test_how_images_are_seen_survives_a_round_trip(weights, tmp_path):
    variables, metadata = read_weights(weights("b0"))
    for evaluation, resize in (("resize", "antialias"), ("crop", "bicubic"), ("crop", "antialias")):
        place = tmp_path / f"{evaluation}_{resize}"
        write_weights(place, variables, dataclasses.replace(metadata, evaluation=evaluation, resize=resize))
        export(place, tmp_path / f"{place.name}_timm", form="timm")
        back = port_checkpoint(tmp_path / f"{place.name}_timm", tmp_path / f"{place.name}_back")
        assert (back.evaluation, back.resize) == (evaluation, resize)


def test_a_file_that_is_called_like_another_network(weights, tmp_path):
    export(weights("lite0"), tmp_path / "out", form="timm")
    (tmp_path / "out" / "config.json").unlink()
    file = tmp_path / "out" / "model.safetensors"
    for name, error in (("efficientnet_lite0_ra-37913777", CheckpointError), ("mine", VariantError)):
        other = tmp_path / f"{name}.safetensors"
        other.write_bytes(file.read_bytes())
        with pytest.raises(error, match="other padding and batch norm|another network"):
            port_checkpoint(other, tmp_path / "back")
    assert port_checkpoint(other, tmp_path / "back", family="lite").class_names == ()


LOAD = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import load
print(np.asarray(load.load()(np.load(sys.argv[2]))).tobytes().hex())
assert not {"effnet_jax", "flax", "orbax"} & set(sys.modules)
"""


@pytest.mark.parametrize("size", [None, (90, 70)])
def test_a_program_runs_without_this_package(weights, tmp_path, size):
    from effnet_jax.data.preprocess import evaluation_image

    pytest.importorskip("flatbuffers")
    metadata = export(weights("lite0"), tmp_path / "out", form="stablehlo", input_size=size)
    side = metadata.resolution
    model, variables, _ = load_weights(weights("lite0"))
    images = np.random.default_rng(0).integers(0, 256, (3, *(size or (side, side)), 3)).astype(np.uint8)
    seen = images.astype(np.float32)
    if size:
        seen = np.stack([evaluation_image(image, side, metadata.crop) for image in images])
    np.save(tmp_path / "images.npy", images if size else seen)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "out"), str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = np.frombuffer(bytes.fromhex(done.stdout.split()[-1]), np.float32).reshape(3, -1)
    ours = np.asarray(jax.jit(model.apply)(variables, seen))
    assert np.abs(theirs - ours).max() <= 1e-5 * np.abs(ours).max()


def test_mistakes(weights, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'timm'"):
        export(weights("b0"), tmp_path / "out", form="tim")
    with pytest.raises(ConfigError, match="--input_size is for programs"):
        export(weights("b0"), tmp_path / "out", form="timm", input_size=(1, 1))
    (tmp_path / "taken").mkdir()
    with pytest.raises(WeightsError, match="exists already"):
        export(weights("b0"), tmp_path / "taken", form="timm")


def test_every_format_has_a_module():
    import importlib

    for form in FORMATS:
        if form != "weights":
            assert importlib.import_module(f"effnet_jax.exports.{form}").write
    assert set(NORMALIZATIONS) >= {"imagenet", "advprop", "lite", "unit"}


def test_a_source_that_is_no_weights_dir(weights, tmp_path):
    """Also timm's folder, which has a config.json as a run dir has."""
    export(weights("lite0"), tmp_path / "out", form="timm")
    for source, message in ((tmp_path / "out", "is no weights dir"), (tmp_path / "out" / "README.md", "is a file")):
        with pytest.raises(WeightsError, match=f"{message}.*python -m effnet_jax.port"):
            export(source, tmp_path / "x")


def test_names_in_a_model_card(weights, tmp_path, monkeypatch):
    """Of one line each, and nothing of them is Markdown or HTML; of a folder that is named from within, its own."""
    variables, metadata = read_weights(weights("lite0"))
    names = ("new\n---\nline", "<b>a|b</b>", *map(str, range(998)))
    source = {"run": "mine", "parent": {"weights": "/home/me/secret/lite0"}}
    write_weights(tmp_path / "mine", variables, dataclasses.replace(metadata, class_names=names, source=source))
    monkeypatch.chdir(tmp_path / "mine")
    export(".", tmp_path / "out", form="timm")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| fine-tuned from | lite0 |" in card and "secret" not in card
    assert "# mine\n" in card and r"Classes, in order: new --- line, \<b\>a\|b\</b\>, 0, 1," in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"][:2] == list(names[:2])


@pytest.mark.parametrize(
    ("place", "out", "message"),
    [("me/mine", "out", "write hf://user/name"), ("hf://me/mine", "gs://a/b", "in a bucket")],
)
def test_a_push_is_checked_before_anything_is_written(weights, tmp_path, monkeypatch, place, out, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", str(weights("lite0")), out, f"--push={place}"])
    with pytest.raises(ConfigError, match=message):
        main()
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_or_does_not_load(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_package.py").write_text("raise ImportError('libhdf5.so.200: cannot open')")
    with pytest.raises(CheckpointError, match=r"a.h5 needs no_such_package: pip install 'effnet-jax\[formats\]'"):
        needs("no_such_package", "a.h5")
    with pytest.raises(CheckpointError, match="needs broken_package, which is here and does not load .*libhdf5"):
        needs("broken_package", "a.h5")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError(
            "Disable slist on flush dest failure failed (file write failed: errno = 28, No space left on device)"
        ),
    ],
)
def test_a_disk_that_is_full(weights, tmp_path, monkeypatch, error):
    """As Python has it, and HDF5."""

    def write(weights, out):
        (out / "half").touch()
        raise error

    monkeypatch.setattr(keras, "write", write)
    with pytest.raises(DiskError, match="no space left on the disk for .*out: free some"):
        export(weights("lite0"), tmp_path / "out", form="keras")
    assert not list(tmp_path.iterdir())


def test_a_config_of_another_variant(weights, tmp_path):
    """Its resolution, crop and scaling are the other's."""
    export(weights("lite0"), tmp_path / "out", form="timm")
    edited(tmp_path / "out", architecture="tf_efficientnet_b3")
    with pytest.raises(
        CheckpointError, match="says that its weights are of timm's tf_efficientnet_b3, and they are of lite0"
    ):
        port_checkpoint(tmp_path / "out", tmp_path / "back")
