"""Counting during training: metrics that wait on the device, sums over an epoch, speed, waiting and time left."""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")

_LAG = 2  # steps that the devices may have before them while metrics are fetched


class Meter:
    """Metrics and speed of a phase. Steps run ahead of the host; their metrics are fetched some steps later.

    Waiting for images costs time only from when the devices have done all that they were given, which a thread notes.
    `close` ends it.
    """

    def __init__(self, batch_size: int, step: int) -> None:
        self._batch_size = batch_size
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._first: int | None = None  # the step after the compilation, from which speed is measured
        self._began = time.monotonic()
        self._collected = step
        self._paused: float | None = None  # when the pause began that lasts
        self._waited = 0.0  # for images, while the devices had nothing to do
        self._watched: queue.SimpleQueue[Any] = queue.SimpleQueue()  # metrics of steps, for the thread
        self._asked = self._done = 0  # how many it was given; how many are there
        self._idle = self._began  # when the last of them was
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """Ends the thread. Metrics can still be collected."""
        if self._thread:
            self._watched.put(None)
            self._thread.join(timeout=1.0)  # no longer: the step may wait for a process that died

    def take(self, batches: Iterator[T]) -> T:
        """Returns the next batch, and counts how long the devices wait for it."""
        busy = bool(self._pending) and not _ready(self._pending[-1][1])
        if busy:
            self._watch(self._pending[-1][1])
        began, batch = time.monotonic(), next(batches)
        if not busy:
            self._waited += time.monotonic() - began
        elif self._done == self._asked:
            self._waited += time.monotonic() - max(began, self._idle)
        return batch

    def _watch(self, metrics: Any) -> None:
        if not self._thread:
            self._thread = threading.Thread(target=self._follow, name="meter", daemon=True)
            self._thread.start()
        self._asked += 1
        self._watched.put(metrics)

    def _follow(self) -> None:
        while (metrics := self._watched.get()) is not None:
            with contextlib.suppress(Exception):  # a step that failed: whoever collects it is told
                jax.block_until_ready(metrics)
            self._idle = time.monotonic()
            self._done += 1

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step, without waiting for them."""
        if self._first is None:
            jax.block_until_ready(metrics)
            self._first, self._began, self._waited = step, time.monotonic(), 0.0
        self._pending.append((step, metrics))

    def __len__(self) -> int:
        return len(self._pending)

    def collect(self, sums: dict[str, float], *, wait: bool = True) -> Iterator[tuple[int, dict[str, float]]]:
        """Brings waiting metrics to the host, in one go, and adds them to an epoch's sums.

        Args:
          sums: `steps`, and the sums of `loss` and `accuracy`; changed in place up to the first loss that is no
            number.
          wait: whether for the newest steps too. Where not, the devices go on with them meanwhile.

        Yields:
          (step, metrics) of each step, the last one that of a loss that is no number where there is one. A step counts
          as collected once its reader asks for the next: where writing it down failed, it comes again.
        """
        count = len(self._pending) if wait else max(len(self._pending) - _LAG, 0)
        self._collected = self._pending[count - 1][0] if count else self._collected
        for step, metrics in jax.device_get(self._pending[:count]):
            values = {key: float(value) for key, value in metrics.items()}
            yield step, values
            self._pending.pop(0)
            if not math.isfinite(values["loss"]):
                break
            for key in ("loss", "accuracy"):
                sums[key] = sums.get(key, 0.0) + values[key]
            sums["steps"] = sums.get("steps", 0) + 1

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock: what happens inside, such as an evaluation, counts for no step."""
        self._paused = time.monotonic()
        yield
        self._began += time.monotonic() - self._paused
        self._paused = None

    @property
    def images_per_second(self) -> float:
        """Speed of training since the compilation, without evaluations; 0 after a single step."""
        if self._first is None or self._collected <= self._first:
            return 0.0
        return (self._collected - self._first) * self._batch_size / self._elapsed

    @property
    def input_wait(self) -> float:
        """Share of that time, from 0 to 1, in which the devices waited for this process's images."""
        if self._first is None or self._collected <= self._first:
            return 0.0
        return min(self._waited / self._elapsed, 1.0)

    @property
    def _elapsed(self) -> float:
        now = time.monotonic() if self._paused is None else self._paused
        return max(now - self._began, 1e-9)

    def time_left(self, end: int) -> str:
        """The time that the steps up to `end` will take."""
        if not self.images_per_second:
            return ""
        return duration((end - self._collected) * self._batch_size / self.images_per_second) + " left"


def _ready(metrics: dict[str, Any]) -> bool:
    return all(value.is_ready() for value in metrics.values() if hasattr(value, "is_ready"))


def duration(seconds: float) -> str:
    """Returns seconds as readers want them: `48 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def mean(sums: dict[str, float], *keys: str) -> dict[str, Any]:
    """Returns the means of an epoch's sums."""
    return {key: sums[key] / sums["steps"] for key in keys}
