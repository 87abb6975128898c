"""Whole runs on a tiny image folder: what they leave, how they resume, and what stops them."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from effnet_jax.errors import EffnetError, RunError
from effnet_jax.train.config import default_config, phase
from effnet_jax.train.loop import train
from effnet_jax.train.rundir.checkpoints import Checkpoints
from effnet_jax.train.rundir.log import Log
from effnet_jax.train.step.partition import Partition
from effnet_jax.weights.store import read_metadata, read_weights
from tests import runs, synthetic

PER_CLASS = {"train": 20, "validation": 5, "test": 7}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A weights dir of Lite0 with random values and 1000 classes."""
    path = tmp_path_factory.mktemp("weights") / "lite0"
    synthetic.write_weights_dir(path)
    return path


@pytest.fixture
def config(weights, image_folder):
    """Two phases, 5 steps of 8 images an epoch, on two classes that their colours tell apart."""
    result = default_config()
    result.variant = "lite0"
    result.weights = str(weights)
    result.resolution = 32
    result.batch_size = 8
    result.log_every = 1
    result.ema = 0.9
    result.checkpoint.minutes = 0.0  # at each epoch's end
    result.report = result.calibrate = False  # most tests are not about them
    result.data.name = str(image_folder(per_class=PER_CLASS, size=(120, 110)))
    result.augment.flip = True
    result.phases = (
        phase(name="head", epochs=2, learning_rate=0.01, weight_decay=1e-4),
        phase(name="blocks", train=("block7:",), epochs=2, learning_rate=0.003, clip_norm=1.0),
    )
    return result


def rows(workdir, *, times=False):
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return lines if times else [{key: row[key] for key in row if key not in runs.TIMES} for row in lines]


def same_weights(first, second):
    trees = [read_weights(path)[1].checksums for path in (first, second)]
    return trees[0] == trees[1]


def test_a_run_leaves_figures_curves_and_weights(config, tmp_path, weights, capsys, monkeypatch):
    workdir = tmp_path / "run"
    config.profile_steps = (2, 3)
    config.report = config.calibrate = True
    summary = train(config, workdir)

    assert [result["name"] for result in summary["phases"]] == ["head", "blocks"]
    for result in summary["phases"]:
        assert result["validation"]["count"] == 10 and result["test"]["count"] == 14
        assert {"train", "validation", "validation_ema", "test", "test_ema"} <= set(result)
    assert summary == json.loads((workdir / "summary.json").read_text()) | {"class_names": ("cat", "dog")}
    assert summary["test"] == summary["phases"][1]["test"]
    assert summary["test"]["accuracy"] >= 0.9
    assert summary["steps"] == 20
    assert summary["provenance"]["versions"]["jax"]

    table = rows(workdir, times=True)
    assert [row["step"] for row in table if row["split"] == "step"] == list(range(1, 21))
    assert [row["epoch"] for row in table if row["split"] == "train"] == [1.0, 2.0, 3.0, 4.0]
    assert [row["step"] for row in table if row["split"] == "test"] == [10, 20]
    first = next(row for row in table if row["split"] == "step")
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)  # a fresh classifier says nothing yet
    assert first["learning_rate"] == pytest.approx(0.01) and first["gradient_norm"] > 0

    for row in table:
        if row["split"] == "train":
            assert 0 <= row["input_wait"] <= 1
            assert 8 * row["images_per_second_per_chip"] == pytest.approx(row["images_per_second"])
    assert 0 < summary["first_step"]["compiling"] < summary["first_step"]["seconds"] < summary["seconds"] + 1
    assert list((workdir / "profile" / "process_0").rglob("*.xplane.pb"))

    picture = (workdir / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    assert list(workdir.glob("events.out.tfevents.*"))
    assert not [path.name for path in workdir.rglob("*partial*")]

    judged = json.loads((workdir / "evaluation.json").read_text())
    for name, ema in (("weights", False), ("weights_ema", True)):
        for split in ("validation", "test"):
            figures = summary[f"{split}_ema" if ema else split]
            assert judged[name][split]["count"] == figures["count"]
            assert judged[name][split]["top1"] == pytest.approx(figures["accuracy"], abs=1e-6)
        # Before the temperature was known, and with it.
        assert judged[name]["validation"]["loss"] == pytest.approx(
            summary["validation_ema" if ema else "validation"]["loss"], abs=1e-5
        )
        _, metadata = read_weights(workdir / name)
        assert metadata.class_names == ("cat", "dog") and metadata.ema is ema and metadata.resolution == 32
        assert metadata.source["run"] == "run"
        assert metadata.temperature == judged[name]["test"]["temperature"] != 1.0
        assert metadata.source["parent"]["weights"] == str(weights)
        for path, checksum in read_metadata(weights).checksums.items():
            collection, unit, layer = path.split("/")[:3]
            trained = unit in ("block7a", "top", "classifier") and not layer.endswith("bn")
            assert (metadata.checksums[path] == checksum) != (collection == "params" and trained), path

    shown = capsys.readouterr().out
    assert "phase blocks" in shown and "after head: test accuracy" in shown
    assert shown.count("first step after ") == 1 and shown.count("profile of steps 2 to 3: ") == 1
    command = shlex.split(shown.splitlines()[-1])
    assert command[1:3] == ["-m", "effnet_jax.predict"]
    monkeypatch.setenv("XLA_FLAGS", "")
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout and "dog" in done.stdout

    # The same command again changes nothing; another config is refused.
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert train(config, workdir)["steps"] == 20
    assert "is finished: test accuracy" in capsys.readouterr().out
    config.seed = 1
    with pytest.raises(RunError, match=r"another config:\n  seed: 0 before, 1 now\n.*another --workdir"):
        train(config, workdir)
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


@pytest.fixture
def interrupted_at(monkeypatch):
    """A function that makes something happen when a run records a row of step n; None: nothing any more."""
    record = Log.record

    def plan(step, act, split="step"):
        def patched(self, **row):
            record(self, **row)
            if row["split"] == split and row["step"] == step:
                act()

        monkeypatch.setattr(Log, "record", record if step is None else patched)

    return plan


def test_a_stopped_run_goes_on_as_if_it_never_stopped(config, tmp_path, interrupted_at, capsys):
    train(config, tmp_path / "whole")

    stopped = tmp_path / "stopped"
    interrupted_at(3, lambda: os.kill(os.getpid(), signal.SIGTERM))  # in the middle of an epoch: saves at once
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM after step 5; the same command goes on"):
        train(config, stopped)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def die():
        raise MemoryError

    interrupted_at(13, die)  # as a kill would, in the second phase: the checkpoint is that of the epoch's end before
    with pytest.raises(MemoryError):
        train(config, stopped)
    interrupted_at(None, None)
    summary = train(config, stopped)
    shown = capsys.readouterr().out

    assert "resumed after step 10" in shown
    assert summary["resumed_after_step"] == 10
    assert rows(stopped) == rows(tmp_path / "whole")
    for name in ("weights", "weights_ema"):
        assert same_weights(stopped / name, tmp_path / "whole" / name)


@pytest.mark.parametrize("border", [1, 2])
def test_a_checkpoint_that_is_only_written_once_its_phase_is_closed(config, tmp_path, monkeypatch, border):
    """As in a bucket that does not answer for a while: the state is that of the phase before."""
    config.ema, config.calibrate = 0.0, True
    config.phases = (phase(name="head", steps=1), phase(name="again", steps=1, optimizer="adam"))
    write, tried = Checkpoints._write, []

    def written_at_the_third_try(self, step, *rest):
        tried.append(step)
        if step != border or tried.count(step) == 3:
            write(self, step, *rest)
        if step == border and tried.count(step) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "_write", written_at_the_third_try)
        train(config, tmp_path / "run")
    summary = train(config, tmp_path / "run")
    assert summary["resumed_after_step"] == border and [one["name"] for one in summary["phases"]] == ["head", "again"]
    found = [(row["step"], row["split"]) for row in rows(tmp_path / "run")]
    assert found == [(step, split) for step in (1, 2) for split in ("step", "train", "validation", "test")]


# In the middle of an epoch; and when the evaluation of step 10 is just done, whose checkpoint was saved before it.
@pytest.mark.parametrize(("step", "split"), [pytest.param(13, "step", marks=pytest.mark.slow), (10, "validation")])
def test_a_plateau_goes_on_after_a_stop(config, tmp_path, interrupted_at, capsys, step, split):
    config.phases = (  # a rate that moves nothing: no loss is lower than the first
        phase(name="head", epochs=4, schedule="plateau", plateau_factor=0.5, plateau_patience=1, learning_rate=1e-9,
              warmup=0.4),
    )  # fmt: skip
    interrupted_at(step, lambda: os.kill(os.getpid(), signal.SIGTERM), split)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    interrupted_at(None, None)
    train(config, tmp_path / "run")
    steps = [row for row in rows(tmp_path / "run") if row["split"] == "step"]
    scales = [round(row["learning_rate"] * 1e9, 4) for row in steps]
    assert scales == [0.0, 0.5, 1.0, 1.0, 1.0] + [1.0] * 5 + [0.5] * 5 + [0.25] * 5
    epochs = [row["learning_rate"] * 1e9 for row in rows(tmp_path / "run") if row["split"] == "train"]
    assert epochs == pytest.approx([1.0, 1.0, 0.5, 0.25])
    assert "the learning rate falls to 5e-10" in capsys.readouterr().out


def test_errors_anywhere_at_an_epochs_end_leave_each_row_once(config, tmp_path, interrupted_at):
    """Such as a disk that is full for the log: what can be saved is, and what was not evaluated is evaluated again."""
    config.phases = config.phases[:1]
    whole = train(config, tmp_path / "whole")

    def fail():
        raise OSError("a disk that fails")

    for step, split in ((5, "step"), (5, "train"), (10, "validation_ema"), (10, "test")):
        interrupted_at(step, fail, split)
        with pytest.raises(OSError, match="a disk that fails"):
            train(config, tmp_path / "run")
    interrupted_at(None, None)
    summary = train(config, tmp_path / "run")
    found, wanted = rows(tmp_path / "run"), rows(tmp_path / "whole")
    assert [(row["step"], row["split"]) for row in found] == [(row["step"], row["split"]) for row in wanted]
    assert found == wanted and summary["phases"] == whole["phases"]


def test_a_reader_that_goes_away_ends_no_run(config, tmp_path):
    script = (
        "import json, sys\nfrom effnet_jax.train.loop import train\ntrain(json.load(open(sys.argv[1])), sys.argv[2])\n"
    )
    config.phases = config.phases[:1]
    (tmp_path / "config.json").write_text(config.to_json())
    command = f"{sys.executable} -c '{script}' {tmp_path / 'config.json'} {tmp_path / 'run'} | head -3"
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(config, tmp_path, interrupted_at, capsys):
    workdir = tmp_path / "run"

    def die():
        raise MemoryError

    interrupted_at(13, die)
    with pytest.raises(MemoryError):
        train(config, workdir)
    interrupted_at(None, None)
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    largest = max(
        (path for path in (newest / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    capsys.readouterr()
    train(config, workdir)
    shown = capsys.readouterr().out
    assert "checkpoint 10 is damaged and is passed over" in shown
    assert "resumed after step 5" in shown
    assert (workdir / "checkpoints.damaged" / "10" / "state").is_dir()  # nothing that was trained is deleted


def test_what_a_step_had_to_fetch_from_the_host_is_an_error(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Partition, "place_batch", lambda self, batch: batch)
    config.phases = config.phases[:1]
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(config, tmp_path / "run")


def test_no_kind_of_phase_has_its_steps_fetch_anything(config, tmp_path):
    config.phases = (
        phase(name="head", steps=6, views=1, cache="memory", schedule="plateau", plateau_patience=1, sam=0.05),
        phase(name="top", train=("top",), steps=6, schedule="plateau", plateau_patience=1, sam=0.05, optimizer="adam"),
    )
    assert train(config, tmp_path / "run")["steps"] == 12


def test_a_loss_that_is_no_number_stops_the_run(config, tmp_path):
    config.phases[1].learning_rate = 1e4
    config.phases[1].clip_norm = 0.0
    config.phases[1].weight_decay = 1e12
    with pytest.raises(
        RunError, match=r"not finite at step 1\d of phase 'blocks'; the last good checkpoint is step 10"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_last_step_that_is_no_number_is_neither_saved_nor_exported(config, tmp_path):
    """The loss of the last step is finite, since it is that before the update: its gradient, or the update, is not."""
    config.phases = (*config.phases[:1], phase(name="blocks", train=("block7:",), steps=1, learning_rate=1e4,
                                               factors={"block7": 1e38}))  # fmt: skip
    with pytest.raises(RunError, match="not finite (at|after) step 11"):
        train(config, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["10", "5"]
    assert not (tmp_path / "run" / "weights").exists() and not (tmp_path / "run" / "summary.json").exists()


def test_data_that_changed_is_told_before_the_run_goes_on_and_after_its_end(config, tmp_path, interrupted_at, capsys):
    config.phases = config.phases[:1]
    interrupted_at(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    interrupted_at(None, None)
    images = Path(config.data.name)
    moved = images / "train" / "cat" / "000.jpg"
    kept = moved.read_bytes()
    moved.unlink()
    with pytest.raises(RunError, match=r"other data or weights:\n  train: 40 images before, 39 now: gone: .*000.jpg"):
        train(config, tmp_path / "run")
    for split in ("train", "validation", "test"):
        (images / split / "cat").rename(images / split / "elk")
    with pytest.raises(RunError, match="classes: new: elk; gone: cat"):
        train(config, tmp_path / "run")
    for split in ("train", "validation", "test"):
        (images / split / "elk").rename(images / split / "cat")
    moved.write_bytes(kept)
    assert train(config, tmp_path / "run")["resumed_after_step"]
    moved.unlink()
    capsys.readouterr()
    train(config, tmp_path / "run")
    shown = capsys.readouterr().out
    assert "warning: data or weights have changed" in shown and "is finished" in shown
    shutil.rmtree(images)
    train(config, tmp_path / "run")  # whose data is gone is finished all the same
    assert "is finished" in capsys.readouterr().out


def test_room_is_asked_for_optimizer_and_averages_too(config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=150_000_000))
    config.checkpoint.keep = 5
    config.ema = 0.0
    variables = 13.6e6  # bytes
    with pytest.raises(EffnetError, match=r"(\d+) MB are needed") as plain:
        config.phases[1].train = ("all",)
        config.phases[1].optimizer = "adam"
        train(config, tmp_path / "run")
    config.ema = 0.9
    with pytest.raises(EffnetError, match=r"(\d+) MB are needed") as averaged:
        train(config, tmp_path / "run")
    needed = [float(re.search(r"(\d+) MB", str(error.value))[1]) * 1e6 for error in (plain, averaged)]
    assert needed[0] == pytest.approx(3 * variables * 8, rel=0.05)  # values and two moments
    assert needed[1] == pytest.approx(4 * variables * 8, rel=0.05)


def test_two_runs_do_not_share_a_run_dir(config, tmp_path, interrupted_at):
    started = []

    def start_another():
        with pytest.raises(RunError, match="in use"):
            train(config, tmp_path / "run")
        started.append(True)

    config.phases = config.phases[:1]
    interrupted_at(3, start_another)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "draw", lambda self, **_: None)
        train(config, tmp_path / "run")
    assert started


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "lite1"}, "holds weights of lite0, and config.variant is 'lite1'"),
        ({"weights": "nowhere"}, "there is no weights dir nowhere"),
        ({"num_classes": 3}, "has 2 classes .* set num_classes to 2, or to 0"),
        ({"batch_size": 12}, "batch_size=12 cannot be shared evenly by 8 devices"),
        ({"profile_steps": (21, 22)}, r"profile_steps=\(21, 22\) begins after the last step, which is 20"),
    ],
)
def test_nothing_is_left_where_a_config_does_not_fit(config, tmp_path, change, message):
    for key, value in change.items():
        config[key] = value
    with pytest.raises(EffnetError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_fresh_classifier_must_be_trained_first(config, tmp_path):
    config.phases = (phase(name="blocks", train=("block7",), epochs=1), phase(name="head", epochs=1))
    with pytest.raises(EffnetError, match="the classifier starts fresh, but the first phase does not train it"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_is_named_or_skipped(config, tmp_path, interrupted_at, capsys):
    root = Path(config.data.name)
    for split in ("train", "validation"):
        path = root / split / "cat" / "000.jpg"
        path.write_bytes(path.read_bytes()[:300])
    config.phases = config.phases[:1]
    with pytest.raises(EffnetError, match="train/cat/000.jpg is a damaged or truncated JPEG"):
        train(config, tmp_path / "run")
    assert "saved after step 3; the same command goes on from there" in capsys.readouterr().out

    config.data.on_bad_image = "skip"  # what was trained is not lost
    interrupted_at(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    listed = json.loads((tmp_path / "run" / "skipped_images.json").read_text())
    assert {split: [entry["id"] for entry in entries] for split, entries in listed.items()} == {
        split: [str(root / split / "cat" / "000.jpg")] for split in ("train", "validation")
    }
    assert capsys.readouterr().out.count("warning: skipped in train") == 1

    interrupted_at(None, None)
    summary = train(config, tmp_path / "run")
    assert summary["skipped_images"] == listed
    assert summary["validation"]["count"] == 9
    assert "skipped images: 1 of train, 1 of validation" in capsys.readouterr().out


def test_a_full_disk_is_told_before_anything_is_written(config, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(EffnetError, match="no space left on the disk for checkpoints and weights"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_foreign_folder_is_left_alone(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="exists and is not a run dir"):
        train(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_from_scratch_with_pmap_and_without_evaluation(config, tmp_path):
    config.weights = ""
    config.batch_norm = "train"
    config.ema = 0.0
    config.partition.mode = "pmap"
    config.data.validation = config.data.test = ""
    config.phases = (phase(train=("top", "classifier"), steps=2, optimizer="rmsprop", learning_rate=1e-3),)
    summary = train(config, tmp_path / "run")
    assert set(summary["phases"][0]) == {"name", "train"}
    assert summary["weights_source"] is None
    variables, metadata = read_weights(tmp_path / "run" / "weights")
    assert metadata.crop == "frac" and metadata.source["parent"] is None
    assert np.abs(variables["batch_stats"]["top"]["bn"]["mean"]).max() > 0
    assert np.abs(variables["batch_stats"]["stem"]["bn"]["mean"]).max() == 0
