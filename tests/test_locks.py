"""One run a run dir: the lock on a disk; tests/test_bucket.py has that in a bucket."""

import errno
import fcntl
import json
import os
import signal
import time

import pytest

from effnet_jax import files, locks
from effnet_jax.errors import RunError
from tests.scripts import kill, start


def content(folder):
    """All names in a folder, hidden ones too."""
    return sorted(os.listdir(folder))


HOLD = "with locks.lock(sys.argv[1]):\n  print('ready', flush=True); time.sleep(60)"


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path):
    process = start(HOLD, tmp_path / "run")
    process.stdout.readline()
    message = rf"run is in use by process {process.pid} on \S+ since 2\S+ .*\(-c .*run\): wait for it, stop it, or use"
    with pytest.raises(RunError, match=message), locks.lock(tmp_path / "run"):
        pass
    kill(process)
    with locks.lock(tmp_path / "run") as claim:
        claim.check()
        assert files.visible(tmp_path / "run") == []
    assert content(tmp_path / "run") == []


def test_the_same_process_is_refused_too(tmp_path):
    with locks.lock(tmp_path):
        for _ in range(2):
            with pytest.raises(RunError, match=f"process {os.getpid()}"), locks.lock(tmp_path):
                pass
    with locks.lock(tmp_path):
        pass


def test_a_child_does_not_hold_the_lock_of_a_parent_that_was_killed(tmp_path):
    script = (
        "import os, subprocess\n"
        "with locks.lock(sys.argv[1]):\n"
        "  reader, writer = os.pipe()\n"
        "  child = os.fork()\n"
        "  if not child: os.write(writer, b'.'); time.sleep(60)\n"
        "  os.read(reader, 1)\n"
        "  other = subprocess.Popen(['sleep', '60'], close_fds=False)\n"
        "  print(child, other.pid, flush=True); time.sleep(60)"
    )
    process = start(script, tmp_path)
    children = [int(pid) for pid in process.stdout.readline().split()]
    with pytest.raises(RunError), locks.lock(tmp_path):
        pass
    process.kill()
    process.wait()
    try:
        with locks.lock(tmp_path):
            pass
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_child_that_ends_leaves_the_lock_to_its_parent(tmp_path):
    script = (
        "import os\n"
        "with locks.lock(sys.argv[1]):\n"
        "  child = os.fork()\n"
        "  if child: os.waitpid(child, 0); print('ready', flush=True); time.sleep(60)"
    )
    process = start(script, tmp_path)
    process.stdout.readline()
    with pytest.raises(RunError), locks.lock(tmp_path):
        pass
    kill(process)


def test_of_many_that_start_at_once_one_gets_the_lock(tmp_path):
    script = (
        "from effnet_jax.errors import RunError\n"
        "end = time.time() + 1\n"
        "while time.time() < end:\n"
        "  try:\n"
        "    with locks.lock(sys.argv[1]):\n"
        "      open(sys.argv[2], 'x').close(); time.sleep(0.001); files.remove(sys.argv[2])\n"
        "  except RunError: pass"
    )
    processes = [start(script, tmp_path / "run", tmp_path / "held") for _ in range(3)]
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 3


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    told = []
    with locks.lock(tmp_path, tell=told.append):
        pass
    assert len(told) == 1 and "cannot be locked (Function not implemented)" in told[0]
    assert content(tmp_path) == []


def test_a_lock_goes_with_its_folder(tmp_path):
    with locks.lock(tmp_path / "run"):
        files.remove(tmp_path / "run")
    assert content(tmp_path) == []


def test_the_holder_is_written_down(tmp_path):
    with locks.lock(tmp_path):
        holder = json.loads((tmp_path / ".lock").read_text())
    assert holder["pid"] == os.getpid() and time.strftime("%Y-%m-%d") in holder["since"]
