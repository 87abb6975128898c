"""Files of other programs whose structure is damaged: an error, or the numbers that they held; never a crash.

Numbers themselves have no checksum in `.safetensors` and HDF5: what is changed is what lies around them.
"""

import resource

import numpy as np
import pytest

from effnet_jax.errors import CheckpointError
from effnet_jax.export import export
from effnet_jax.weights.port import plan_port, read_variables
from effnet_jax.weights.readers import open_checkpoint
from effnet_jax.weights.store import read_weights
from tests import synthetic

pytest.importorskip("safetensors")
pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function from a format to its file, of B0."""
    root = tmp_path_factory.mktemp("written")
    synthetic.write_weights_dir(root / "b0", "b0")
    variables, _ = read_weights(root / "b0")

    def make(form):
        if not (root / form).exists():
            export(root / "b0", root / form, form=form)
        return root / form / {"timm": "model.safetensors", "keras": "model.weights.h5"}[form], variables

    return make


def structure(form, data):
    """Positions of bytes that are no numbers of the network: the header; in HDF5 the first of each group and array."""
    if form == "timm":
        return np.arange(8 + int.from_bytes(data[:8], "little"))
    heads = [data.find(mark) for mark in (b"TREE", b"SNOD", b"HEAP")]
    return np.concatenate(
        [np.arange(min(head, len(data)), min(head + 400, len(data))) for head in [0, *heads] if head >= 0]
    )


def fuzz(form, path, variables, folder, count):
    data, random, read = path.read_bytes(), np.random.default_rng(0), 0
    places = structure(form, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    damaged = folder / path.name
    for number in range(count):
        content = bytearray(data)
        for place in random.choice(places, random.integers(1, 4)):
            content[place] = random.integers(256)
        if number % 10 == 0:
            content = content[: random.integers(len(content))]
        damaged.write_bytes(content)
        try:
            with open_checkpoint(damaged) as checkpoint:
                found = read_variables(checkpoint, plan_port(checkpoint))
        except CheckpointError:
            continue
        read += 1
        kernel = found["params"]["classifier"]["kernel"]
        assert np.array_equal(kernel, variables["params"]["classifier"]["kernel"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB
    return read


@pytest.mark.parametrize("form", ["timm", "keras"])
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_structure(written, tmp_path, form, count):
    path, variables = written(form)
    assert fuzz(form, path, variables, tmp_path, count) < count


def test_a_link_to_another_file_is_refused(written, tmp_path):
    import h5py

    path, _ = written("keras")
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = h5py.ExternalLink(str(path), "/layers/conv2d/vars/0")
    with pytest.raises(CheckpointError, match="is a link"):
        open_checkpoint(tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_group("stem_conv").attrs["weight_names"] = ["stem_conv/kernel:0"]
        file["stem_conv/stem_conv/kernel:0"] = h5py.ExternalLink(str(path), "/layers/conv2d/vars/0")
    with pytest.raises(CheckpointError, match="is a link"):
        open_checkpoint(tmp_path / "m.h5")


def test_an_array_that_unpacks_to_many_times_the_file_is_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (10**5, 10**5), "f4", chunks=(1000, 1000), compression="gzip")
    with pytest.raises(CheckpointError, match="many times its size"):
        open_checkpoint(tmp_path / "m.weights.h5")


def test_scaling_of_published_keras_files(written, tmp_path):
    """They keep a standard deviation where a variance belongs; a layer without weights makes up for it."""
    import shutil

    import h5py

    path, _ = written("keras")
    for variance, name in (((0.229, 0.224, 0.225), "imagenet"), ((0.25, 0.25, 0.25), "advprop"), ((1, 1, 1), "unit")):
        mean = {"imagenet": (0.485, 0.456, 0.406), "advprop": (0.5, 0.5, 0.5), "unit": (0, 0, 0)}[name]
        shutil.copy(path, tmp_path / "m.weights.h5")
        with h5py.File(tmp_path / "m.weights.h5", "a") as file:
            file["layers/normalization/vars/0"][...] = mean
            file["layers/normalization/vars/1"][...] = variance
        with open_checkpoint(tmp_path / "m.weights.h5") as checkpoint:
            assert checkpoint.about.normalization("m") == name
    with h5py.File(tmp_path / "m.weights.h5", "a") as file:
        file["layers/normalization/vars/1"][...] = (0.5, 0.6, 0.7)
    with (
        open_checkpoint(tmp_path / "m.weights.h5") as checkpoint,
        pytest.raises(CheckpointError, match="which is none of"),
    ):
        checkpoint.about.normalization("m")


def test_a_group_that_is_in_several_is_refused(tmp_path):
    """Thirteen levels with two links each to the level below took six seconds, twenty-five would take hours."""
    import h5py

    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros(1)
        file["layers/again"] = file["layers/conv2d"]
    with pytest.raises(CheckpointError, match=r"layers/\w+ is a link"):
        open_checkpoint(tmp_path / "m.weights.h5")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param("[" * 100_000, id="deep"),
        '{"architecture": "tf_efficientnet_b0", "input_size": [3, -32, -32], "crop_pct": 0.9}',
        '{"architecture": "tf_efficientnet_b0", "input_size": [3, 224, 1e999]}',
    ],
)
def test_a_config_that_is_damaged(written, tmp_path, config):
    import shutil

    shutil.copy(written("timm")[0], tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"config.json is damaged .*: download it again, or remove it"):
        open_checkpoint(tmp_path)
