"""Stopping together: a signal to any process is followed by all, at one and the same tick."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from effnet_jax.hosts.names import here, state
from effnet_jax.hosts.watching import Run


class Stop:
    """A wish to stop by SIGTERM or SIGINT to any process, and the tick at which all follow it."""

    def __init__(self, run: Run | None = None):
        self.run = run
        self.folder = f"stop{next(run.stops)}/" if run else ""
        self.asked: str | None = None  # what came to this process
        self.name: str | None = None  # what came first to one of them
        self.told = False  # the main thread knows
        self._count = 0
        self._fence: float = math.inf  # the tick that is not passed before the common one is known
        self._common: float | None = None
        self._lock = threading.Lock()

    def wished(self) -> str | None:
        """Says, at any time, whether somebody wishes to stop: the signal's name, as far as this process knows.

        Raises:
          HostsError: another process failed.
          Stopped: another process was stopped and has left.
        """
        if self.run:
            self.run.check(stopping=self.name is not None)
        self.told = self.name is not None
        return self.name

    def reason(self) -> str | None:
        """Returns the signal's name, also where only another process knows it yet: for after `anywhere`."""
        if self.run and not self.name:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody wishes
                self.name = state().client.key_value_try_get(f"{self.run.folder}{self.folder}wish")
        return self.wished()

    def tick(self) -> str | None:
        """Counts a point of the common work that all processes pass, in the same order: before each step.

        Returns:
          The signal's name at one and the same tick on all processes, None before.

        Raises:
          HostsError: another process failed.
          Stopped: another process was stopped and has left.
        """
        with self._lock:
            self._count += 1
            if self._count < self._fence:
                return None
        while self._common is None:  # all threads tell their fences, whatever their main threads wait for
            if self.run:
                self.run.check()
            time.sleep(0.01)
        if self._count >= self._common:
            return self.wished()
        if self.run:
            self.run.check()
        return None

    def ask(self, name: str) -> None:
        """Notes a signal; in a signal handler, so without the lock."""
        self.asked = self.asked or name
        if not self.run:
            self.name, self._common, self._fence = self.asked, 0, 0

    def wake(self) -> None:
        """Has the next tick look for a failure."""
        with self._lock:
            self._fence = 0

    def hear(self, told: dict[str, str]) -> None:
        """Follows a wish: the threads find the tick that no process has passed, while the main threads go on."""
        assert self.run
        wish = told.get(f"{self.folder}wish")
        if not wish:
            if asked := self.asked or _preempted():
                with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
                    state().client.key_value_set(f"{self.run.folder}{self.folder}wish", asked)
            return
        if self._fence == math.inf:
            with self._lock:
                self._fence = self._count + 1
            self.run.put(f"{self.folder}fence/{self.run.me}", str(self._fence))
            self.name = wish
        fences = [int(fence) for key, fence in told.items() if key.startswith(f"{self.folder}fence/")]
        if len(fences) > len(self.run.others):
            self._common = max(fences)

    @property
    def pending(self) -> bool:
        """The others are waiting for this process's thread, or this one for theirs."""
        return (self.asked or self.name) is not None and self._common is None


def _preempted() -> str | None:
    """Returns SIGTERM where JAX's preemption service, which takes that signal, has had it on any process."""
    try:
        return "SIGTERM" if state().client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE") else None
    except jax.errors.JaxRuntimeError:
        return None


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns SIGTERM and SIGINT into a wish that the loop asks for; a second one ends the process at once.

    With several processes it is inside of `watch`, and SIGTERM stays with JAX's preemption service, which orbax asks.
    """
    stop = Stop(here.run)
    if here.run:
        here.run.stop = stop
    numbers = [signal.SIGINT] if here.run and state().preemption_sync_manager else [signal.SIGTERM, signal.SIGINT]
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: Any) -> None:
        stop.ask(signal.Signals(number).name)
        restore()

    for number in before:
        signal.signal(number, receive)
    try:
        yield stop
    finally:
        restore()
