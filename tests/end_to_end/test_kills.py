"""A run that is killed at any moment, again and again, ends as the one that was not: to the bit."""

import random
import signal
import time

import pytest

from tests import runs

KILLS = 20


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (2, 2)])
def test_twenty_kills_change_nothing(recipe, tmp_path, processes, devices):
    began = time.monotonic()
    options = {"processes": processes, "devices": devices}
    runs.run(recipe, tmp_path / "whole", **options)
    seconds = time.monotonic() - began
    wanted = runs.outcome(tmp_path / "whole")
    assert wanted["board"] == runs.board_of(wanted["rows"])

    moments = random.Random(processes)
    killed, attempt, finished = 0, 0, 0
    workdir = tmp_path / "killed"
    while killed < KILLS:
        started = runs.start(recipe, workdir, **options)
        # From the begin of the start-up to long after it, so that fills, saves and evaluations are met too.
        deadline = time.monotonic() + moments.uniform(0.2, 1.0) * seconds
        while time.monotonic() < deadline and started[0].process.poll() is None:
            time.sleep(0.01)
        attempt += 1
        if started[0].process.poll() is None:
            victim = moments.randrange(processes)
            started[victim].process.send_signal(signal.SIGKILL)
            killed += 1
            runs.kill(started)  # a scheduler ends what is left of such a run
        else:
            assert runs.finish(started) == [0] * processes, started[0].text()[-3000:]
        if (workdir / "summary.json").exists():
            assert runs.outcome(workdir) == wanted
            finished += 1
            workdir = tmp_path / f"killed{finished}"
    runs.run(recipe, workdir, **options)
    assert runs.outcome(workdir) == wanted
    print(f"{killed} kills in {attempt} attempts, {finished + 1} runs")
