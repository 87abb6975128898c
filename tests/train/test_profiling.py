"""Traces of steps: real ones, of a small program."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax import files
from effnet_jax.train.meter import Meter
from effnet_jax.train.profiling import Profile
from tests.bucket import bucket_fixture  # noqa: F401


@jax.jit
def a_step(state):
    return state / jnp.linalg.norm(state @ state)


@pytest.fixture
def run(tmp_path):
    """A run of which two steps are to be traced: what `Profile` asks of one."""
    said = []
    screen = types.SimpleNamespace(say=said.append, said=said)
    return types.SimpleNamespace(
        config=types.SimpleNamespace(profile_steps=(3, 4)), workdir=files.as_path(tmp_path / "run"), screen=screen
    )


def train(run, first, last, size=64):
    """Takes some steps as a phase does, and returns where it stands."""
    state = jax.device_put(np.random.default_rng(0).normal(size=(size, size)).astype(np.float32))
    standing = types.SimpleNamespace(state=state, meter=Meter(batch_size=1, step=0))
    with Profile(run, standing) as profile:
        for number in range(first, last + 1):
            with profile.step(number):
                standing.state = a_step(standing.state)
    return standing


def traces(run):
    """The steps that each trace in the run dir holds."""
    found = []
    for path in sorted((run.workdir / "profile" / "process_0" / "plugins" / "profile").glob("*/*.xplane.pb")):
        data = jax.profiler.ProfileData.from_serialized_xspace(path.read_bytes())
        events = (event for plane in data.planes for line in plane.lines for event in line.events)
        found.append(sorted(dict(event.stats)["step_num"] for event in events if event.name == "train"))
    return found


def test_the_wished_steps_are_traced_and_the_way_to_look_at_them_is_told(run):
    train(run, 1, 6)
    assert traces(run) == [[3, 4]]
    folder = run.workdir / "profile"
    assert run.screen.said == [f"profile of steps 3 to 4: pip install xprof, then xprof --logdir={folder}"]


def test_the_last_traced_step_is_waited_for(run, monkeypatch):
    seen = []
    stop = jax.profiler.stop_trace

    def stop_trace():
        seen.append(states[-1].is_ready())
        stop()

    monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, x: x @ x / jnp.linalg.norm(x @ x), x))
    states = [slow(jax.device_put(np.eye(400, dtype=np.float32)))]
    states[-1].block_until_ready()
    standing = types.SimpleNamespace(state=states[0], meter=Meter(batch_size=1, step=0))
    with Profile(run, standing) as profile:
        for number in (3, 4):
            with profile.step(number):
                standing.state = slow(standing.state)
                states.append(standing.state)
                if number == 4:
                    assert not states[-1].is_ready()  # or this test shows nothing
    assert seen == [True]


def test_a_phase_that_ends_before_the_last_step_ends_the_trace(run):
    train(run, 1, 3)
    train(run, 4, 5)  # the next phase, or a resume, goes on with what is left
    assert traces(run) == [[3], [4]]
    assert [words.partition(":")[0] for words in run.screen.said] == ["profile of step 3", "profile of step 4"]


def test_a_resume_after_those_steps_traces_nothing(run):
    train(run, 5, 8)
    assert traces(run) == [] and run.screen.said == []


def test_an_error_in_a_step_leaves_a_trace_and_nothing_running(run):
    standing = types.SimpleNamespace(state=a_step(jnp.eye(8)), meter=Meter(batch_size=1, step=0))
    with pytest.raises(ValueError, match="an image"), Profile(run, standing) as profile, profile.step(3):
        raise ValueError("an image")
    assert len(traces(run)) == 1
    with jax.profiler.trace(run.workdir / "another"):  # which would fail where one runs already
        pass


def test_trouble_with_a_trace_ends_no_run(run, tmp_path, monkeypatch, capsys):
    with jax.profiler.trace(tmp_path / "another"):
        train(run, 1, 6)
    assert capsys.readouterr().err.count("warning: no profile: RuntimeError: Profile has already been started") == 1

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "copy_folder", full)
    train(run, 1, 6)
    assert "warning: no profile: OSError: [Errno 28] No space left" in capsys.readouterr().err
    assert traces(run) == [] and run.screen.said == []


def test_the_speed_does_not_count_the_writing_of_a_trace(run, monkeypatch):
    pauses = []
    stop = jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (pauses.append(meter._paused), stop()))
    meter = Meter(batch_size=1, step=0)
    standing = types.SimpleNamespace(state=a_step(jnp.eye(8)), meter=meter)
    with Profile(run, standing) as profile, profile.step(3):
        pass
    assert pauses[0] is not None and meter._paused is None


def test_a_trace_of_a_run_in_a_bucket_comes_there(run, bucket):
    run.workdir = files.as_path(f"{bucket}/run")
    train(run, 1, 4)
    assert traces(run) == [[3, 4]]
    assert f"xprof --logdir={bucket}/run/profile" in run.screen.said[0]
