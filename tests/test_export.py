"""Weights out of any checkpoint of a run."""

import os
import shutil
import signal

import numpy as np
import pytest

from effnet_jax import export as export_module
from effnet_jax.errors import RunError, WeightsError
from effnet_jax.export import export
from effnet_jax.predict import load_classifier
from effnet_jax.train.config import default_config, phase
from effnet_jax.train.loop import train
from effnet_jax.train.rundir.log import Log
from effnet_jax.weights.store import read_weights
from tests import synthetic


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in its third epoch, with checkpoints of the epochs before."""
    import PIL.Image

    folder = tmp_path_factory.mktemp("export")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 4)):
        for label in ("cat", "dog"):
            (folder / "images" / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (40, 40, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(folder / "images" / split / label / f"{index}.png")
    synthetic.write_weights_dir(folder / "lite0")
    config = default_config()
    config.variant, config.weights, config.resolution, config.ema = "lite0", str(folder / "lite0"), 32, 0.9
    config.batch_size, config.log_every, config.checkpoint.minutes, config.checkpoint.keep = 8, 1, 0.0, 5
    config.data.name, config.data.test = str(folder / "images"), ""
    config.phases = (phase(name="head", epochs=4, learning_rate=0.01),)
    record, count = Log.record, [0]

    def stop_in_the_third_epoch(self, **row):
        record(self, **row)
        count[0] += row["split"] == "train"
        if count[0] == 3 and row["split"] == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    Log.record = stop_in_the_third_epoch
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, folder / "run")
    finally:
        Log.record = record
    return folder / "run"


def test_an_unfinished_run_gives_weights_that_classify(stopped, tmp_path):
    metadata = export(stopped, tmp_path / "latest")
    assert metadata.class_names == ("cat", "dog") and metadata.resolution == 32 and metadata.source["step"] == 6
    classify = load_classifier(tmp_path / "latest")
    assert classify([np.zeros((40, 40, 3), np.uint8)]).sum() == pytest.approx(1)
    with pytest.raises(WeightsError, match="a run that is not finished: .* python -m effnet_jax.export .*run OUT"):
        load_classifier(stopped)


def test_a_step_the_best_and_the_averages(stopped, tmp_path):
    export(stopped, tmp_path / "2", step=2)
    export(stopped, tmp_path / "ema", step="2", ema=True)
    kernels = [read_weights(tmp_path / name)[0]["params"]["classifier"]["kernel"] for name in ("2", "ema")]
    assert not np.array_equal(*kernels)
    assert read_weights(tmp_path / "ema")[1].ema is True
    assert export(stopped, tmp_path / "best", step="best").source["step"] in (2, 4, 6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"step": 7}, RunError, "has no checkpoint 7: it has 2, 4, 6; or latest, best"),
        ({"step": "newest"}, RunError, "has no checkpoint newest"),
    ],
)
def test_a_checkpoint_that_is_not_there(stopped, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        export(stopped, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_or_is_taken(stopped, tmp_path):
    with pytest.raises(WeightsError, match="is no weights dir"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(RunError, match="is no run dir"):
        export(tmp_path, tmp_path / "out", step=3)
    (tmp_path / "taken").mkdir()
    with pytest.raises(WeightsError, match="exists already"):
        export(stopped, tmp_path / "taken")


def test_a_run_that_goes_on_may_remove_a_checkpoint_while_it_is_read(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped, tmp_path / "run")
    read = export_module.read_checkpoint

    def removed_first(folder):
        if folder.name == "6":
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(export_module, "read_checkpoint", removed_first)
    assert export(tmp_path / "run", tmp_path / "out").source["step"] == 4
