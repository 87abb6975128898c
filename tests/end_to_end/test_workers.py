"""A run whose images are decoded by worker processes: a signal to all of them, or the death of one, loses nothing."""

import os
import signal
from pathlib import Path

import pytest

from tests import runs

# Enough steps that images are still to be decoded when the signal comes.
FLAGS = ["--config.data.workers=2", "--config.data.cache_gib=0", "--config.phases[2].epochs=12.0"]


def workers_of(process):
    """Processes that a run has started to decode images."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rpartition(") ")[2].split()[1]
                command = (folder / "cmdline").read_bytes()
            except OSError:  # gone meanwhile
                continue
            if int(parent) == process.pid and b"decoders import serve" in command:
                found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM to the group", "kill -9 of a worker", "the set is gone"])
def test_it_is_saved_and_goes_on_to_the_same_end(recipe, tmp_path, how):
    root, moved = tmp_path / "images", tmp_path / "moved"
    runs.run(recipe, tmp_path / "whole", flags=FLAGS)
    (started,) = runs.start(recipe, tmp_path / "run", flags=FLAGS, group=True)
    runs.wait_for(started, "blocks 1/12")
    workers = workers_of(started.process)
    assert len(workers) == 2
    if how == "kill -9 of a worker":
        os.kill(workers[0], signal.SIGKILL)
    elif how == "the set is gone":
        root.rename(moved)
    else:
        os.killpg(started.process.pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM)
    status = started.process.wait(60)
    text = started.text()
    assert status == {"Ctrl-C": 130, "SIGTERM to the group": 143}.get(how, 2), text[-2000:]
    assert "the same command goes on from there" in text and "Traceback" not in text
    if how == "kill -9 of a worker":
        assert "was killed (SIGKILL): most likely the machine ran out of memory. Set data.workers lower" in text
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)
    if how == "the set is gone":
        assert "cannot be read: No such file or directory" in text
        moved.rename(root)
    runs.run(recipe, tmp_path / "run", flags=FLAGS)
    assert runs.outcome(tmp_path / "run") == runs.outcome(tmp_path / "whole")
