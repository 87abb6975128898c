"""The run dir: what an attempt that fails leaves behind."""

import pytest

from effnet_jax.errors import DataError, RunError
from effnet_jax.train.workdir import CHECKPOINTS, claim_workdir


def attempt(workdir, error, *, checkpoint=False):
    with pytest.raises(type(error)), claim_workdir(workdir, {"seed": 0}):
        (workdir / "metrics.jsonl").write_text("{}\n")
        (workdir / CHECKPOINTS / ("7" if checkpoint else "7.orbax-checkpoint-tmp")).mkdir(parents=True)
        raise error


def test_a_mistake_before_the_first_checkpoint_leaves_nothing(tmp_path):
    attempt(tmp_path / "run", DataError("a damaged image"))
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_of_the_user_stays(tmp_path):
    (tmp_path / "run").mkdir()
    attempt(tmp_path / "run", OSError("no space"))
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "checkpoint"),
    [(DataError("a damaged image"), True), (RunError("the loss is not finite"), False), (KeyboardInterrupt(), False)],
)
def test_what_is_of_use_stays(tmp_path, error, checkpoint):
    attempt(tmp_path / "run", error, checkpoint=checkpoint)
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_earlier_attempt_stays(tmp_path):
    with claim_workdir(tmp_path / "run", {"seed": 0}):
        pass
    attempt(tmp_path / "run", DataError("a damaged image"))
    assert (tmp_path / "run" / "metrics.jsonl").exists()
