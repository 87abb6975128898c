"""The run dir: what an attempt that fails leaves behind."""

import pytest

from effnet_jax import files
from effnet_jax.errors import DataError, RunError
from effnet_jax.train.config import check_config, default_config, phase
from effnet_jax.train.rundir.checkpoints import CHECKPOINTS
from effnet_jax.train.rundir.workdir import check_workdir, claim_workdir


def attempt(workdir, error, *written):
    """Starts a run that writes some files and ends with an error."""
    with pytest.raises(type(error)), claim_workdir(files.as_path(workdir), config()):
        for name in written:
            (workdir / name).parent.mkdir(parents=True, exist_ok=True)
            (workdir / name).write_text("{}\n")
        raise error


def test_a_mistake_before_anything_was_written_leaves_nothing(tmp_path):
    attempt(tmp_path / "run", DataError("a damaged image"), "data.json", "attempts.jsonl")
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_of_the_user_stays(tmp_path):
    (tmp_path / "run").mkdir()
    attempt(tmp_path / "run", OSError("no space"), "events.out.tfevents.1.host")
    assert files.visible(tmp_path / "run") == []


# Each of them may be the work of hours: the figures of an epoch, a checkpoint, a trunk cache, a list of bad images.
@pytest.mark.parametrize(
    "written", ["metrics.jsonl", f"{CHECKPOINTS}/7/_CHECKPOINT_METADATA", "trunk_cache_0_0/train.bin", "notes.txt"]
)
@pytest.mark.parametrize("error", [DataError("a damaged image"), OSError("no space"), RunError("not finite")])
def test_figures_and_what_else_was_written_stay(tmp_path, error, written):
    attempt(tmp_path / "run", error, written)
    assert (tmp_path / "run" / written).exists() and (tmp_path / "run" / "config.json").exists()


def test_an_earlier_attempt_stays(tmp_path):
    with claim_workdir(files.as_path(tmp_path / "run"), config()):
        pass
    attempt(tmp_path / "run", DataError("a damaged image"))
    assert (tmp_path / "run" / "config.json").exists()


def test_a_run_dir_in_use_is_refused_and_left_alone(tmp_path):
    with claim_workdir(files.as_path(tmp_path / "run"), config()):
        with pytest.raises(RunError, match="in use"), claim_workdir(files.as_path(tmp_path / "run"), config()):
            pass
        assert (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("name", ["lost+found", ".DS_Store", "config.json.partial"])
def test_what_a_disk_or_a_kill_leaves_is_no_content(tmp_path, name):
    (tmp_path / ("." + name if name.endswith("partial") else name)).write_text("")
    assert check_workdir(files.as_path(tmp_path), config()) == ([], None)


def config(**keys):
    result = default_config()
    result.weights, result.data.name = "weights/b0", "cifar100"
    result.phases = (phase(epochs=1),)
    result.update(keys)
    return check_config(result)


def test_keys_that_change_no_number_may_differ_and_are_told(tmp_path):
    with claim_workdir(files.as_path(tmp_path / "run"), config()):
        pass
    other = config(
        log_every=5, data={"workers": 2, "cache_gib": 3.0}, checkpoint={"minutes": 1.0}, cache_dir="/tmp/x",
        compile_cache="off", profile_steps=(20, 24),
    )  # fmt: skip
    notes, finished = check_workdir(files.as_path(tmp_path / "run"), other)
    assert finished is None
    assert sorted(notes) == [
        'cache_dir: "" before, "/tmp/x" now',
        "checkpoint.minutes: 10.0 before, 1.0 now",
        'compile_cache: "" before, "off" now',
        "data.cache_gib: 1.0 before, 3.0 now",
        "data.workers: 0 before, 2 now",
        "log_every: 10 before, 5 now",
        "profile_steps: [] before, [20, 24] now",
    ]
    with pytest.raises(RunError, match="another config:\n  batch_size: 64 before, 32 now"):
        check_workdir(files.as_path(tmp_path / "run"), config(batch_size=32, log_every=5))


def test_a_key_of_a_later_version_has_its_default_in_an_older_run(tmp_path):
    with claim_workdir(files.as_path(tmp_path / "run"), config()):
        pass
    path = files.as_path(tmp_path / "run" / "config.json")
    old = files.read_json(path)
    del old["cache_dir"], old["phases"][0]["sam"]
    old["checkpoint"] = {"keep": 2}
    files.write_json(path, old)
    assert check_workdir(path.parent, config()) == ([], None)
    files.write_json(path, {**old, "gone": 1})
    with pytest.raises(RunError, match="gone: 1 before, absent now"):
        check_workdir(path.parent, config())
