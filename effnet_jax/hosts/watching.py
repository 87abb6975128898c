"""Failing together: who ends badly, or falls silent, takes the others along."""

import contextlib
import itertools
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax

from effnet_jax.errors import EffnetError, HostsError, Stopped
from effnet_jax.hosts import names
from effnet_jax.hosts.agreeing import Waiting, told_of, wait
from effnet_jax.hosts.ending import depart, leave_soon, lost, prepare, status_of
from effnet_jax.hosts.joining import meet
from effnet_jax.hosts.names import count, here, index, state, who

if TYPE_CHECKING:
    from effnet_jax.hosts.stopping import Stop


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Surrounds a run: what ends it on one process ends it on all, with the same words and status.

    An error that leaves the block is told to the others. There the next `tick`, `gather` or `wished` raises it; a main
    thread that stays away from these, in a collective that nobody finishes, is ended with its process after `GRACE`
    seconds. A process that dies without a word is missed after `SILENCE` seconds; with the first process, the one with
    the store, at once. Who comes to the end waits there for the others. After an error one of several processes ends
    within half a minute, whatever Python still waits for.

    Raises:
      HostsError: another process failed or died; instead of an error here that came of it, too.
      Stopped: another process was stopped.
    """
    if count() == 1:
        yield
        return
    prepare()
    if not here.names:
        meet()
    run = here.run = Run(f"effnet_jax/run{next(here.runs)}/")
    wait("the run begins")  # before somebody is missed
    run.thread.start()
    try:
        try:
            yield
            run.end_well()
        except BaseException as error:
            reason = run.end_badly(error)
            if reason is not error:
                raise reason from error
            raise
    finally:
        if here.status is None:
            run.closed.set()
            run.thread.join()
            here.run = None


class Run:
    """What this process knows of the others while it watches; `look`, in a thread of its own, keeps it fresh."""

    def __init__(self, folder: str):
        self.folder, self.me = folder, index()
        self.others = [i for i in range(count()) if i != self.me]
        self.beats, self.stops = itertools.count(), itertools.count()
        self.period = names.BEAT * max(1.0, count() / 256)  # a look costs the first process 0.6 ms at 256 processes
        self.looked = time.monotonic()
        self.heard = {i: ("", self.looked) for i in self.others}  # the last beat, and when it came
        self.ends: dict[int, dict[str, str]] = {}  # how others ended
        self.failure: dict[str, str] | None = None  # what ends this process too: an error's text, or a signal's name
        self.deadline = math.inf  # when the thread ends this process, wherever its main thread is
        self.leaving = self.left = False  # the main thread is on its way out; has an error of its own to end with
        self.stop: Stop | None = None
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.follow, name="hosts", daemon=True)

    def follow(self) -> None:
        while not self.closed.wait(self.period / 10 if self.stop and self.stop.pending else self.period):
            # Without an answer jaxlib aborts, and `ending` goes on from there.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.look()
            if time.monotonic() > self.deadline:
                self.give_up()

    def put(self, key: str, value: str) -> None:
        if not here.alone:
            state().client.key_value_set(self.folder + key, value, True)

    def look(self) -> None:
        """Tells that this process lives, and takes in what the others told: one request of each kind."""
        self.put(f"beat/{self.me}", str(next(self.beats)))
        told = {key.removeprefix(self.folder): value for key, value in state().client.key_value_dir_get(self.folder)}
        now = time.monotonic()
        paused, self.looked = now - self.looked > names.SILENCE / 3, now  # this process itself, not the others
        if self.stop:  # before the ends: who was stopped at a common tick has told it
            self.stop.hear(told)
        for i in self.others:
            beat = told.get(f"beat/{i}", "")
            if f"end/{i}" in told:
                self.ends[i] = json.loads(told[f"end/{i}"])
                self.fail(self.ends[i])
            elif beat != self.heard[i][0] or paused:
                self.heard[i] = (beat, now)
            elif now - self.heard[i][1] > names.SILENCE and i not in self.ends:
                self.ends[i] = {"error": lost(i)}
                self.fail(self.ends[i])

    def fail(self, end: dict[str, str]) -> None:
        """Takes over how another process ended, unless that was well."""
        if self.failure or self.left or not end:
            return
        self.failure = end
        # Who knows of the wish to stop is saving, which takes what it takes.
        patient = "signal" in end and self.stop and self.stop.told
        self.deadline = time.monotonic() + (300 if patient else names.GRACE)
        if self.stop:
            self.stop.wake()

    def error(self) -> BaseException:
        assert self.failure
        if "signal" in self.failure:
            return Stopped(self.failure["signal"], self.failure["words"])
        return HostsError(self.failure["error"])

    def check(self, stopping: bool = False) -> None:
        """Raises what ended another process; that one was stopped is no news to a process that is stopping."""
        if self.failure and not (stopping and "signal" in self.failure):
            if not self.leaving:
                self.deadline = time.monotonic() + 2 * names.GRACE
            raise self.error()

    def end_well(self) -> None:
        """Waits until all processes have come to the end."""
        self.leaving = True
        self.put(f"end/{self.me}", "{}")
        waiting = Waiting()
        while len(self.ends) < len(self.others):
            self.check()
            time.sleep(0.02)
            waiting.say(lambda: f"{who(*(i for i in self.others if i not in self.ends))}: the end of the run")
        self.check()

    def end_badly(self, error: BaseException) -> BaseException:
        """Tells the others, and returns the error that this process is to end with."""
        self.deadline = math.inf
        here.status = status_of(error)
        if not isinstance(error, EffnetError | OSError | KeyboardInterrupt | SystemExit):
            # Such as a connection that broke in a collective: is it another's fault? Who lives shows it by two beats.
            late = time.monotonic() + 2 * self.period
            while not self.failure and any(i not in self.ends and came < late for i, (_, came) in self.heard.items()):
                time.sleep(0.05)
            if self.failure and not self.failure.get("error", "").startswith(f"{who(self.me)}: "):
                error = self.error()
        self.deadline, self.leaving, self.left = math.inf, True, True
        leave_soon(error)
        if isinstance(error, KeyboardInterrupt):
            name = getattr(error, "signal", "SIGINT")
            end = {"signal": name, "words": f"stopped by {name}, as {who(self.me)}"}
        else:
            end = {"error": told_of(error)}
        self.put(f"end/{self.me}", json.dumps(end))
        return error

    def give_up(self) -> None:
        """Ends this process from the thread, since its main thread does not come."""
        error = self.error()
        print(error if isinstance(error, Stopped) else f"error: {error}", file=sys.stderr, flush=True)
        leave_soon(error)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.put(f"end/{self.me}", json.dumps(self.failure))
        depart()
