"""Counting during training."""

import contextlib
import math
import threading
import time

import numpy as np
import pytest

from effnet_jax.train.meter import Meter, duration


def test_the_meter_sums_up_to_a_loss_that_is_no_number():
    meter, sums = Meter(batch_size=8, step=0), {}
    for step, loss in enumerate((1.0, 3.0, math.nan, 5.0), 1):
        meter.add(step, {"loss": np.float32(loss), "accuracy": np.float32(0.5)})
    rows = list(meter.collect(sums))
    assert [step for step, _ in rows] == [1, 2, 3] and math.isnan(rows[-1][1]["loss"])
    assert sums == {"loss": 4.0, "accuracy": 1.0, "steps": 2}
    assert meter.images_per_second > 0


def test_the_newest_steps_are_not_waited_for():
    meter, sums = Meter(batch_size=8, step=0), {}
    for step in range(1, 6):
        meter.add(step, {"loss": np.float32(step), "accuracy": np.float32(1)})
    assert [step for step, _ in meter.collect(sums, wait=False)] == [1, 2, 3] and len(meter) == 2
    assert [step for step, _ in meter.collect(sums)] == [4, 5]
    assert sums == {"loss": 15.0, "accuracy": 5.0, "steps": 5}


def test_a_step_that_could_not_be_written_down_comes_again():
    meter, sums = Meter(batch_size=8, step=0), {}
    for step in (1, 2, 3):
        meter.add(step, {"loss": np.float32(step), "accuracy": np.float32(1)})
    with pytest.raises(OSError, match="full"):
        for step, _ in meter.collect(sums):
            if step == 2:
                raise OSError("full")
    assert sums == {"loss": 1.0, "accuracy": 1.0, "steps": 1}
    assert [step for step, _ in meter.collect(sums)] == [2, 3] and sums["steps"] == 3


def test_an_evaluation_does_not_count_for_the_speed_or_the_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    meter = Meter(batch_size=8, step=0)
    for step in (1, 2):
        meter.add(step, {"loss": np.float32(1), "accuracy": np.float32(1)})
        clock[0] += 1
    list(meter.collect({}))
    with meter.pause():
        clock[0] += 100
        assert meter.images_per_second == 4 and meter.time_left(12) == "20 s left"
    assert meter.images_per_second == 4


class Running:
    """A metric that is there once its step is done."""

    def __init__(self):
        self.done = threading.Event()

    def is_ready(self):
        return self.done.is_set()

    def block_until_ready(self):
        self.done.wait(10)
        return self


@pytest.mark.parametrize(
    ("done", "waited"),
    [("before", 6.0), ("meanwhile", 2.0), ("later", 0.0)],  # of 4 s of another step and 2 s after it
)
def test_waiting_for_images_counts_while_the_devices_have_nothing_to_do(monkeypatch, done, waited):
    clock, running = [0.0], Running()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def batches():
        yield "first"
        clock[0] += 4
        if done == "meanwhile":
            running.done.set()
            until = time.perf_counter() + 10
            while meter._done < 1:  # the thread that watches
                assert time.perf_counter() < until
                time.sleep(0.001)
        clock[0] += 2
        yield "second"

    with contextlib.closing(Meter(batch_size=8, step=0)) as meter:
        stream = batches()
        clock[0] += 50  # of the first images, and the compilation
        assert meter.take(stream) == "first"
        for step in (1, 2):
            meter.add(step, {"loss": np.float32(1), "accuracy": np.float32(1)})
            clock[0] += 2
        list(meter.collect({}))
        meter._pending.append((3, {"loss": running}))
        if done == "before":
            running.done.set()
        assert meter.take(stream) == "second"
        assert clock[0] == 60 and meter.input_wait == waited / 10
        with meter.pause():
            clock[0] += 100
            assert meter.input_wait == waited / 10
        running.done.set()


@pytest.mark.parametrize(("seconds", "text"), [(48.4, "48 s"), (185, "3 min 05 s"), (7810, "2 h 10 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
