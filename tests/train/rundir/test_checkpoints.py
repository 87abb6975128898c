"""Checkpoints: which stay, what is damage and what is not, and that nothing bad is saved or unnoticed."""

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effnet_jax import files
from effnet_jax.errors import RunError
from effnet_jax.train.rundir.checkpoints import Checkpoints, best_step, list_steps
from effnet_jax.train.rundir.progress import Progress
from effnet_jax.train.rundir.snapshot import Damage, Snapshot, read_checkpoint
from effnet_jax.train.step.partition import make_partition
from effnet_jax.train.step.state import create_state
from effnet_jax.weights.metadata import Metadata
from tests import disk

REPOSITORY = Path(__file__).resolve().parents[3]
METADATA = Metadata("lite0", "lite", "lite", "frac", 32, 4, ("a", "b", "c", "d"))


def state(step, *, classes=4, optimizer=None, scale=1.0):
    kernel = scale * jax.random.normal(jax.random.key(step), (64, classes))
    variables = {
        "params": {"classifier": {"kernel": kernel, "bias": jnp.zeros(classes)}},
        "batch_stats": {"stem": {"bn": {"mean": jnp.ones(8)}}},
    }
    made = create_state(variables, optimizer or optax.adam(0.1), ema=True)
    return made.replace(step=jnp.asarray(step, jnp.int32))


def snapshot(step, **keys):
    return Snapshot(state(step, **keys), Progress(sums={"loss": 0.1234 * step, "steps": step}), METADATA)


def open_in(folder, **options):
    return Checkpoints(files.as_path(folder), **options)


def save(folder, *steps, **options):
    checkpoints = open_in(folder, **options)
    for step in steps:
        checkpoints.save(snapshot(step))
    checkpoints.close()


def restore(folder, told=None, **keys):
    told = [] if told is None else told
    checkpoints = open_in(folder)
    try:
        return checkpoints.restore(lambda progress: jax.eval_shape(lambda: state(0, **keys)), told.append)
    finally:
        checkpoints.close()


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_what_is_saved_is_restored_to_the_bit(tmp_path):
    save(tmp_path, 3)
    found, saved, since = restore(tmp_path)
    same(found, state(3))
    assert jax.tree.structure(found) == jax.tree.structure(state(3))
    assert saved == since == Progress(sums={"loss": 0.1234 * 3, "steps": 3})


@pytest.mark.parametrize("kept_on", [(8, 4), (1, 1)], ids=["sharded", "whole"])
@pytest.mark.parametrize("goes_on", [(1, 1), (8, 8), (4, 2)], ids=["1 device", "8 shards", "2 × 2"])
def test_a_state_is_restored_to_the_bit_onto_another_topology(tmp_path, kept_on, goes_on):
    before, after = (make_partition("pjit", jax.devices()[:count], fsdp=fsdp) for count, fsdp in (kept_on, goes_on))
    checkpoints = open_in(tmp_path)
    checkpoints.save(Snapshot(before.place_state(state(3, classes=256)), Progress(), METADATA))
    checkpoints.close()
    found = after.place_state(restore(tmp_path, classes=256)[0])
    same(found, state(3, classes=256))
    kernel = found.params["classifier"]["kernel"]
    assert {shard.data.size * goes_on[1] for shard in kernel.addressable_shards} == {kernel.size}


def test_progress_without_a_step_needs_no_second_checkpoint(tmp_path):
    checkpoints = open_in(tmp_path)
    checkpoints.save(snapshot(3))
    checkpoints.save(Snapshot(state(3), Progress(phase=1, results=[{"name": "head"}]), METADATA))
    checkpoints.close()
    assert list_steps(files.as_path(tmp_path)) == [3]
    _, saved, since = restore(tmp_path)
    assert saved.phase == 0 and since == Progress(phase=1, results=[{"name": "head"}])
    save(tmp_path, 5)  # what was said about step 3 is not true of step 5
    assert restore(tmp_path)[2].phase == 0


def test_the_best_survives_a_resume(tmp_path):
    first = open_in(tmp_path, keep=1)
    first.accuracies = {1: 0.9, 2: 0.1}
    for step in (1, 2):
        first.save(snapshot(step))
    first.close()
    again = open_in(tmp_path, keep=1)
    again.accuracies = {1: 0.9, 2: 0.1, 3: 0.2}
    again.save(snapshot(3))
    again.close()
    assert list_steps(files.as_path(tmp_path)) == [1, 3]


def test_the_best_of_epochs_that_are_not_saved_is_written_with_the_next_checkpoint(tmp_path):
    checkpoints = open_in(tmp_path, keep=1)
    checkpoints.accuracies = {}
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7)):
        checkpoints.accuracies[step] = accuracy
        if checkpoints.is_unsaved_best(step):
            checkpoints.hold(snapshot(step))
    assert list_steps(files.as_path(tmp_path)) == []  # an epoch of seconds writes nothing
    checkpoints.save(snapshot(4))
    checkpoints.close()
    assert list_steps(files.as_path(tmp_path)) == [2, 4]
    assert best_step([2, 4], checkpoints.accuracies) == 2
    _, leaves = read_checkpoint(files.as_path(tmp_path) / "checkpoints" / "2")
    assert np.array_equal(leaves["params/classifier/kernel"], state(2).params["classifier"]["kernel"])


def test_checkpoints_are_due_by_the_clock_and_by_steps(tmp_path):
    checkpoints = open_in(tmp_path, minutes=0.02, steps=4)
    assert [checkpoints.due(step) for step in (3, 4, 5)] == [False, True, False]
    assert not checkpoints.due_at_epoch(5) and checkpoints.due_at_epoch(8)
    time.sleep(0.2)
    assert checkpoints.due_at_epoch(5) and not checkpoints.due(5)
    time.sleep(1.1)
    assert checkpoints.due(5)
    checkpoints.save(snapshot(5))
    assert not checkpoints.due(6) and not checkpoints.due_at_epoch(6)
    checkpoints.close()


@pytest.mark.parametrize(("path", "value"), [("params", np.nan), ("batch_stats", np.inf), ("ema", -np.inf)])
def test_a_value_that_is_not_finite_is_not_saved(tmp_path, path, value):
    checkpoints = open_in(tmp_path)
    checkpoints.save(snapshot(1))
    bad = state(2)
    bad = bad.replace(**{path: jax.tree.map(lambda leaf: leaf.at[0].set(value), getattr(bad, path))})
    with pytest.raises(RunError, match=f"{path}/.* is not finite after step 2, .*the last good checkpoint is step 1"):
        checkpoints.save(Snapshot(bad, Progress(), METADATA))
    checkpoints.close()
    assert list_steps(files.as_path(tmp_path)) == [1]


# ---- damage

# The other reads of a checkpoint that fail after the first have nobody to tell, and say so.
reads_that_fail = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def data_files(folder, step):
    found = [path for path in (folder / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: -path.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, bit=None):
    data = bytearray(path.read_bytes())
    bit = len(data) * 4 if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@reads_that_fail
@pytest.mark.parametrize(
    ("what", "harm"),
    [
        ("truncated", lambda folder: truncate(data_files(folder, 2)[0])),
        ("half-deleted", lambda folder: data_files(folder, 2)[0].unlink()),
        ("one bit flipped", lambda folder: flip(data_files(folder, 2)[0])),
        ("record cut off", lambda folder: truncate(folder / "checkpoints" / "2" / "record" / "metadata")),
        ("record gone", lambda folder: (folder / "checkpoints" / "2" / "record" / "metadata").unlink()),
        ("all arrays gone", lambda folder: files.remove(folder / "checkpoints" / "2" / "state")),
    ],
)
def test_damage_is_told_and_the_checkpoint_before_is_taken(tmp_path, what, harm):
    save(tmp_path, 1, 2)
    harm(tmp_path)
    told = []
    found, _, _ = restore(tmp_path, told)
    same(found, state(1))
    assert len(told) == 1 and told[0].startswith("checkpoint 2 is damaged and is passed over: "), told
    # Nothing is deleted, and the step is free to be written again: twice, if need be.
    save(tmp_path, 2)
    harm(tmp_path)
    restore(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints.damaged").iterdir()) == ["2", "2.2"]


@reads_that_fail
def test_all_damaged_is_an_error_and_leaves_them(tmp_path):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        truncate(data_files(tmp_path, step)[0])
    with pytest.raises(RunError, match="all 2 checkpoints in .* are damaged"):
        restore(tmp_path)
    assert list_steps(files.as_path(tmp_path)) == [1, 2]


RESTORE = """
import sys
from pathlib import Path
from tests.train.rundir.test_checkpoints import restore
told = []
try:
    restore(Path(sys.argv[1]), told)
except BaseException as error:
    print("RAISED", type(error).__name__, error)
print("TOLD", told)
"""


def restore_under(folder, **environment):
    """What a process prints that restores in an environment."""
    command = [sys.executable, "-c", RESTORE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=REPOSITORY)
    return done.stdout


@pytest.mark.parametrize("part", ["checkpoints/2/state/ocdbt.process_0/d/", "checkpoints/2/record"])
def test_a_disk_that_fails_is_not_called_damage(tmp_path, part):
    save(tmp_path, 1, 2)
    shown = restore_under(tmp_path, **disk.failing_disk(tmp_path, part))
    assert "Input/output error" in shown and "RAISED" in shown and "TOLD []" in shown, shown
    assert list_steps(files.as_path(tmp_path)) == [1, 2]


def test_another_state_is_not_called_damage(tmp_path):
    save(tmp_path, 1, 2)
    told = []
    with pytest.raises(RunError, match=r"checkpoint 2 of .* is whole, but of another state .*\[64, 4\] there and "):
        restore(tmp_path, told, classes=5)
    with pytest.raises(RunError, match=r"opt_state/.*mu.* is not in this version's state.*attempts.jsonl"):
        restore(tmp_path, told, optimizer=optax.sgd(0.1))
    assert told == [] and list_steps(files.as_path(tmp_path)) == [1, 2]


def test_no_flipped_bit_is_unnoticed(tmp_path):
    save(tmp_path, 1)
    folder = files.as_path(tmp_path) / "checkpoints" / "1"
    paths = [path for path in data_files(tmp_path, 1) if path.stat().st_size]
    sizes = [path.stat().st_size for path in paths]
    moments = random.Random(0)
    for _ in range(1000):
        path = moments.choices(paths, sizes)[0]
        bit = moments.randrange(8 * path.stat().st_size)
        flip(path, bit)
        with pytest.raises(Damage, match=path.name):
            read_checkpoint(folder)
        flip(path, bit)
    read_checkpoint(folder)


@pytest.mark.slow
@reads_that_fail
def test_no_flipped_bit_has_an_effect_where_a_kill_came_before_the_files_were_sealed(tmp_path):
    save(tmp_path, 1)
    files.remove(tmp_path / "checkpoints.files")
    folder = files.as_path(tmp_path) / "checkpoints" / "1"
    wanted = read_checkpoint(folder)
    paths = [path for path in data_files(tmp_path, 1) if path.stat().st_size]
    sizes = [path.stat().st_size for path in paths]
    moments = random.Random(0)
    noticed = 0
    for _ in range(1000):
        path = moments.choices(paths, sizes)[0]
        bit = moments.randrange(8 * path.stat().st_size)
        flip(path, bit)
        try:
            record, leaves = read_checkpoint(folder)
        except Damage:
            noticed += 1
        else:
            assert record == wanted[0] and leaves.keys() == wanted[1].keys()
            same(leaves, wanted[1])
        flip(path, bit)
    print(f"of 1,000 flipped bits {noticed} were noticed, {1000 - noticed} changed nothing that is read")
    assert noticed > 500


SAVE_ON_A_FULL_DISK = """
import os, sys, time
from pathlib import Path
from tests.train.rundir.test_checkpoints import open_in, snapshot
from effnet_jax.errors import DiskError

checkpoints = open_in(Path(sys.argv[1]))
checkpoints.save(snapshot(1))
while checkpoints._manager.is_saving_in_progress():
    time.sleep(0.01)
os.environ["DISK_PATH"] = "/checkpoints/2"  # from here on the disk is full: for the bytes, not for the first look
checkpoints.save(snapshot(2))
try:
    for step in range(3, 1000):  # heard while the training goes on
        checkpoints.due(step)
        time.sleep(0.01)
except DiskError as error:
    print("TOLD", error, "|", checkpoints.last_good())
print("DUE", checkpoints.due_at_epoch(4))
del os.environ["DISK_PATH"]
checkpoints.save(snapshot(3))  # with room again
checkpoints.close()
print("SAVED", checkpoints.last_good())
"""


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_is_told_and_the_next_one_is_written(tmp_path):
    full = disk.failing_disk(tmp_path, "/nowhere/", calls="write", error=errno.ENOSPC)
    command = [sys.executable, "-c", SAVE_ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **full}, cwd=REPOSITORY)
    shown = done.stdout
    assert "TOLD no space left on the disk for checkpoint 2" in shown, done.stderr[-3000:]
    assert "Traceback" not in done.stderr  # once is enough
    assert "| the last good checkpoint is step 1" in shown and "DUE True" in shown
    assert "SAVED the last good checkpoint is step 3" in shown, done.stderr[-3000:]
    assert list_steps(files.as_path(tmp_path)) == [1, 3]
    same(restore(tmp_path)[0], state(3))
