"""Threads and worker processes that fill batches: what a signal, a kill and a closed pipe come to."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from effnet_jax.data.decoders import Decoders
from effnet_jax.data.examples import EvaluationExamples, TrainingExamples
from effnet_jax.data.sources import open_source
from effnet_jax.data.view import EvaluationView
from effnet_jax.errors import DataError


def children():
    """Processes of this one that are alive."""
    me, found = os.getpid(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(") ")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == me and state != "Z":
            found.append(int(name))
    return found


@pytest.fixture
def examples(image_folder):
    return TrainingExamples(open_source({"name": str(image_folder())}, "train"), 32)


@pytest.mark.parametrize("count", [1, 3, 200])
def test_workers_fill_what_threads_fill(examples, count):
    positions = np.arange(count) % 8
    filled = []
    for workers in (0, 2):
        decoders = Decoders(examples, workers=workers)
        rows = decoders.fill(positions)
        assert rows.wait() == []
        decoders.close()
        filled.append(rows.arrays)  # which outlive their decoders
    for name, array in filled[0].items():
        assert array.dtype == filled[1][name].dtype and np.array_equal(array, filled[1][name]), name


def test_evaluation_pads(examples):
    decoders = Decoders(EvaluationExamples(examples.source, EvaluationView(24, crop="pad32")), workers=1)
    rows = decoders.fill(np.array([2, -1, 0]))
    rows.wait()
    decoders.close()
    assert rows.arrays["mask"].tolist() == [1, 0, 1] and rows.arrays["index"].tolist() == [2, -1, 0]
    assert not rows.arrays["image"][1].any() and rows.arrays["image"][2].any()


def test_a_killed_worker_is_told_with_the_cure(examples):
    before = set(children())
    decoders = Decoders(examples, workers=1)
    decoders.fill(np.arange(8)).wait()
    (worker,) = set(children()) - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(DataError, match=r"was killed \(SIGKILL\): most likely .* out of memory.* data.workers lower"):
        decoders.fill(np.arange(8)).wait()
    decoders.close()


def test_nothing_is_left_of_workers(examples):
    before, files = set(children()), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        decoders = Decoders(examples, workers=2)
        rows = [decoders.fill(np.arange(8) % 8) for _ in range(4)]
        rows[0].wait()
        decoders.close()
    del rows  # memory is theirs as long as they are there
    assert set(children()) == before
    assert len(os.listdir("/proc/self/fd")) <= files + 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("holder", ["the batch", "a row"])
def test_memory_serves_again_when_nothing_looks_at_it(examples, workers, holder):
    with contextlib.closing(Decoders(examples, workers=workers)) as decoders:
        first = filled(decoders, np.arange(8))
        place, expected = address(first), first[2].copy()
        kept = first if holder == "the batch" else first[2]
        del first
        assert address(filled(decoders, np.arange(8)[::-1].copy())) != place
        assert np.array_equal(kept[2] if holder == "the batch" else kept, expected)
        del kept
        assert place in (address(filled(decoders, np.arange(8))), address(filled(decoders, np.arange(8))))


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_that_a_device_shares_is_not_written_over(examples, workers):
    """On a CPU an array of JAX's may be the host's memory itself, which it lets go of a while after the array."""
    with contextlib.closing(Decoders(examples, workers=workers)) as decoders:
        places = set()
        for shift in range(30):
            image = filled(decoders, (np.arange(8) + shift) % 8)
            places.add(address(image))
            put, expected = jax.device_put(image), image.copy()
            del image
            filled(decoders, np.arange(8)[::-1].copy())
            assert np.array_equal(put, expected)
        assert len(places) < 6


def filled(decoders, positions):
    rows = decoders.fill(positions)
    rows.wait()
    return rows.arrays["image"]


def address(image):
    return image.__array_interface__["data"][0]


SCRIPT = """
import os, sys, time
import numpy as np
from effnet_jax.data.decoders import Decoders
from effnet_jax.data.examples import TrainingExamples
from effnet_jax.data.sources import open_source
decoders = Decoders(TrainingExamples(open_source({"name": sys.argv[1]}, "train"), 32), workers=1)
decoders.fill(np.arange(8)).wait()
print(os.getpid(), decoders._workers[0]._process.pid, flush=True)
time.sleep(60)
"""


def test_a_worker_ends_with_its_process_and_not_with_its_group(image_folder):
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(image_folder())], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        parent, worker = map(int, process.stdout.readline().split())
        assert os.getpgid(worker) != os.getpgid(parent)  # a terminal's Ctrl-C goes to the group
        process.kill()
        process.wait()
        until = time.monotonic() + 10
        while os.path.exists(f"/proc/{worker}") and time.monotonic() < until:
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{worker}")


BUSY = """
import sys, time
from effnet_jax.data.decoders import Decoders
from effnet_jax.data.view import EvaluationView
from effnet_jax.predict.inputs import ViewedImages, draw
rows = Decoders(ViewedImages(EvaluationView(32)), workers=1).fill([(0, draw(sys.argv[1], 0))])
time.sleep(60)
"""


def test_a_worker_that_is_at_an_image_when_its_process_is_killed_ends_without_a_word(tmp_path):
    os.mkfifo(tmp_path / "slow.png")
    command = [sys.executable, "-c", BUSY, str(tmp_path / "slow.png")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr
        with open(tmp_path / "slow.png", "wb"):  # once the worker reads it
            process.kill()
            process.wait()
        assert process.stderr.read() == b""  # to the end of the worker, who has it too
