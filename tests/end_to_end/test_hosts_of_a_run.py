"""Two processes of one run, as on two hosts: what happens to one of them ends both, with the same words and status."""

import errno
import json
import signal
import sys
import time

import pytest

from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import write_weights
from tests import disk, runs, synthetic

TOGETHER = {"processes": 2, "devices": 2}


def ends(started, *, within, killed=None):
    """Waits for the end of both. Returns the seconds that it took, the statuses and the outputs."""
    began = time.monotonic()
    statuses = runs.finish(started, timeout=within)
    return time.monotonic() - began, statuses, [one.text() for one in started]


def damage(path):
    path.write_bytes(path.read_bytes()[:300])


def errors(outputs):
    """The line of each process that tells its error."""
    return [[line for line in output.splitlines() if line.startswith("error: ")] for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4], ids=["whole", "sharded"])
def test_a_damaged_image_in_the_share_of_one(recipe, tmp_path, fsdp):
    path = sorted((tmp_path / "images" / "train" / "cat").iterdir())[0]
    path.write_bytes(path.read_bytes()[:300])
    seconds, statuses, outputs = ends(
        runs.start(
            recipe,
            tmp_path / "run",
            flags=["--config.phases[0].cache=", f"--config.partition.fsdp={fsdp}"],
            **TOGETHER,
        ),
        within=180,
    )
    assert statuses == [2, 2]
    told = errors(outputs)
    assert all(len(lines) == 1 and f"{path} is a damaged or truncated JPEG" in lines[0] for lines in told), told
    assert sum("process " in lines[0] for lines in told) == 1  # the other one is named
    print(f"both ended {seconds:.0f} s after the start: {told}")


@pytest.mark.slow
def test_a_state_in_pieces_is_saved_by_all_and_goes_on(recipe, tmp_path):
    """Checkpoints by time, by steps and at epochs' ends, the best, and disk caches, with a kill between."""
    flags = ["--config.partition.fsdp=4", "--config.checkpoint.steps=3"]
    runs.run(recipe, tmp_path / "whole", flags=flags, **TOGETHER)
    started = runs.start(recipe, tmp_path / "run", flags=flags, **TOGETHER)
    runs.wait_for(started[0], "top 1/3")
    runs.kill(started)
    runs.run(recipe, tmp_path / "run", flags=flags, **TOGETHER)
    assert runs.outcome(tmp_path / "run") == runs.outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["config", "data"])
def test_two_hosts_that_differ_name_the_difference(recipe, tmp_path, change):
    text = recipe.read_text().replace(str(tmp_path / "images"), "images")
    recipe.write_text(text)
    options = dict(TOGETHER)
    if change == "config":
        options["flags"] = {1: ["--config.seed=7"]}
        expected = "process 1 .*config.seed.* 7.* 0|config.seed"
    else:
        other = tmp_path / "other"
        other.mkdir()
        import shutil

        shutil.copytree(tmp_path / "images", other / "images")
        next((other / "images" / "train" / "cat").iterdir()).unlink()
        options["folders"] = {1: other}
        expected = "data.splits.train.images"
    seconds, statuses, outputs = ends(runs.start(recipe, tmp_path / "run", **options), within=120)
    assert statuses == [2, 2], outputs
    told = errors(outputs)
    assert told[0] == told[1] and len(told[0]) == 1
    import re

    assert re.search(expected, told[0][0]) and "process 1" in told[0][0], told
    assert not (tmp_path / "run").exists()
    print(f"both ended {seconds:.0f} s after the start: {told[0]}")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_is_named_and_the_run_goes_on_from_its_checkpoint(recipe, tmp_path, victim):
    started = runs.start(recipe, tmp_path / "run", **TOGETHER)
    runs.wait_for(started[0], "top 1/3")
    started[victim].process.send_signal(signal.SIGKILL)
    seconds, statuses, outputs = ends(started, within=120)
    assert statuses[1 - victim] == 2 and statuses[victim] == -signal.SIGKILL
    assert f"process {victim} (" in errors(outputs)[1 - victim][0]
    print(f"the other one ended {seconds:.0f} s after the kill: {errors(outputs)[1 - victim]}")
    runs.run(recipe, tmp_path / "run", **TOGETHER)


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_by_both(recipe, tmp_path):
    full = disk.failing_disk(tmp_path, "/run/checkpoints/", calls="write", error=errno.ENOSPC, after=40_000_000)
    started = runs.start(recipe, tmp_path / "run", environments={0: full}, **TOGETHER)
    seconds, statuses, outputs = ends(started, within=300)
    assert statuses == [2, 2], [output[-2000:] for output in outputs]
    assert all("no space left on the disk for" in lines[0] for lines in errors(outputs)), outputs
    assert not any("Traceback" in output for output in outputs), outputs[0][-3000:]
    print(f"both ended {seconds:.0f} s after the start: {errors(outputs)}")
    runs.run(recipe, tmp_path / "run", **TOGETHER)  # with room again


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("moment", "status"),
    [("phase head", 143), ("trunk cache:", 143), ("head 1/4", 130), ("phase blocks", 143), ("blocks 1/2", 143)],
)
def test_a_signal_to_one_stops_both_at_the_same_step(recipe, tmp_path, victim, moment, status):
    started = runs.start(recipe, tmp_path / "run", **TOGETHER)
    runs.wait_for(started[0], moment)
    started[victim].process.send_signal(signal.SIGTERM if status == 143 else signal.SIGINT)
    seconds, statuses, outputs = ends(started, within=60)
    assert statuses == [status, status], [output[-2000:] for output in outputs]
    assert all("the same command goes on from there" in output for output in outputs[:1])
    print(f"{seconds:.1f} s from the signal to process {victim} at {moment!r} to the end of both")
    runs.run(recipe, tmp_path / "run", **TOGETHER)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["attempts"]) == 2


@pytest.mark.slow
def test_the_end_of_a_run_is_one_for_both(recipe, tmp_path):
    """A disk that fills up at the end loses nothing: figures are written by the next start, the page by its command."""
    for name in ("cat/000.jpg", "cat/005.jpg"):  # of the first batch: one in the share of each
        damage(tmp_path / "images" / "test" / name)
    options = {**TOGETHER, "flags": ["--config.data.on_bad_image=skip"]}
    full = [
        disk.failing_disk(tmp_path, name, calls="write", error=errno.ENOSPC) for name in ("evaluation.json", "report.h")
    ]
    seconds, statuses, outputs = ends(
        runs.start(recipe, tmp_path / "run", environments={0: full[0]}, **options), within=300
    )
    assert statuses == [2, 2] and all("No space left" in lines[0] for lines in errors(outputs)), outputs
    print(f"both ended {seconds:.0f} s after the start: {errors(outputs)}")

    started = runs.run(recipe, tmp_path / "run", environments={0: full[1]}, **options)
    assert "warning: report.html was not written" in started[0].text() and "warning" not in started[1].text()
    judged = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [judged[name]["test"]["skipped"] for name in ("weights", "weights_ema")] == [2, 2]
    assert judged["weights"]["test"]["count"] == 22 and (tmp_path / "run" / "weights" / "metadata.json").exists()
    again = runs.run(recipe, tmp_path / "run", **options)
    assert all("It has no report. This makes it: " in one.text() for one in again)


@pytest.mark.slow
def test_an_evaluation_by_two_counts_what_both_skip_and_an_error_of_one_ends_both(tmp_path, image_folder):
    images = image_folder(per_class={"test": 12}, size=(60, 50))
    metadata = Metadata("lite0", "lite", "lite", "frac", 32, 2, ("cat", "dog"))
    write_weights(tmp_path / "lite0", synthetic.variables("lite0", num_classes=2), metadata)
    damage(images / "test" / "cat" / "005.jpg")  # in the share of the second

    def evaluate(*flags):
        port = runs.free_port()
        command = [sys.executable, "-m", "effnet_jax.evaluate", str(tmp_path / "lite0"), f"--config.data.name={images}"]
        command += ["--batch_size=8", f"--coordinator=localhost:{port}", "--processes=2", *flags]
        return ends([runs.start_command([*command, f"--process={i}"], tmp_path, devices=2) for i in (0, 1)], within=120)

    seconds, statuses, outputs = evaluate()
    assert statuses == [2, 2] and all("005.jpg is a damaged" in lines[0] for lines in errors(outputs)), outputs
    print(f"both ended {seconds:.0f} s after the start: {errors(outputs)}")
    seconds, statuses, outputs = evaluate("--config.data.on_bad_image=skip", f"--json={tmp_path / 'figures.json'}")
    assert statuses == [0, 0], outputs
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["count"], figures["skipped"]) == (23, 1) and "23 images of 2 classes" in outputs[0]
