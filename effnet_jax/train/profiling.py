"""A trace of some steps: what the devices and the hosts did in them, for JAX's profiler."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from effnet_jax import files, hosts
from effnet_jax.train.run import Run, Standing

PROFILE = "profile"
_TRACES = ("plugins", "profile")  # where a profiler's readers look


class Profile:
    """Traces the steps of `config.profile_steps`, on every process into `<run dir>/profile/process_<i>`.

    Around the steps of a phase: whatever ends it, a trace that runs is stopped and written. Trouble with a trace is
    told and ends no run.
    """

    def __init__(self, run: Run, standing: Standing) -> None:
        assert standing.meter is not None
        self._run, self._standing, self._meter = run, standing, standing.meter
        steps: tuple[int, int] = run.config.profile_steps or (1, 0)
        self._first, self._last = steps
        self._folder: tempfile.TemporaryDirectory | None = None  # of the trace that runs
        self._traced: list[int] = []

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Surrounds a step, of which it is the number in the run."""
        if not self._first <= number <= self._last:
            yield
            return
        if not self._folder:
            self._start()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        self._traced.append(number)
        if number == self._last:
            self._stop()

    def _start(self) -> None:
        with self._meter.pause(), self._telling(), contextlib.ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="effnet-profile-")
            stack.enter_context(folder)
            jax.profiler.start_trace(folder.name)
            stack.pop_all()
            self._folder, self._traced = folder, []

    def _stop(self) -> None:
        if not (folder := self._folder):
            return
        with contextlib.suppress(Exception):  # a step that failed, whose error is on its way
            jax.block_until_ready(self._standing.state)
        self._folder = None
        with self._meter.pause(), self._telling(), folder:
            jax.profiler.stop_trace()
            (made,) = Path(folder.name, *_TRACES).iterdir()
            named = "_".join(["steps", *map(str, self._traced[:1] + self._traced[-1:])])  # and not by the second
            files.copy_folder(made, self._run.workdir.joinpath(PROFILE, f"process_{hosts.index()}", *_TRACES, named))
            self._run.screen.say(profile_words(self._traced, self._run.workdir))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # another trace that runs, a full disk, whatever a profiler raises
            self._first, self._last = 1, 0
            print(f"warning: no profile: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def profile_words(steps: list[int], workdir: epath.Path) -> str:
    """Says which steps were traced, and how to look at them."""
    which = f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}" if steps else "no whole step"
    return f"profile of {which}: pip install xprof, then xprof --logdir={workdir / PROFILE}"
