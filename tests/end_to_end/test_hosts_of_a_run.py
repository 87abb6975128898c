"""Two processes of one run, as on two hosts: what happens to one of them ends both, with the same words and status."""

import errno
import json
import signal
import time

import pytest

from tests import disk, runs

TOGETHER = {"processes": 2, "devices": 2}


def ends(started, *, within, killed=None):
    """Waits for the end of both. Returns the seconds that it took, the statuses and the outputs."""
    began = time.monotonic()
    statuses = runs.finish(started, timeout=within)
    return time.monotonic() - began, statuses, [one.text() for one in started]


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
