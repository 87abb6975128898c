"""Several processes are one run: real ones here, with real signals, that join, agree, fail and stop together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest

from effnet_jax import hosts
from effnet_jax.errors import ConfigError, DataError, HostsError

PREAMBLE = """
import json, os, signal, socket, sys, threading, time
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from effnet_jax import errors, hosts
from effnet_jax.errors import DataError, HostsError, Stopped

number, count, port = map(int, sys.argv[1:])

def say(name, value=None):
    print("SAID", json.dumps([name, value]), flush=True)

def common():
    "A program in which every process waits for all others."
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("d"))
    program = jax.jit(lambda x: x + x.sum())
    ones = jax.make_array_from_process_local_data(rows, np.ones(jax.local_device_count(), np.float32))
    return lambda: program(ones).block_until_ready()

def main():
    hosts.join(f"localhost:{port}", count, number, timeout=60)
    body()

def body():
"""

STEPPING = """
    step, steps = common(), 0
    with hosts.watch(), hosts.stop_signals() as stop:
        while True:
            if wish := stop.tick():
                say("stop", [wish, steps])
                hosts.wait("saved")
                raise Stopped(wish, f"stopped after step {steps}")
            step()
            steps += 1
            if steps == 5:
                say("ready")
"""


class Ended(NamedTuple):
    status: int
    output: str
    seconds: float  # since the signal, or the start

    def said(self, name):
        rows = [json.loads(line[5:]) for line in self.output.splitlines() if line.startswith("SAID ")]
        return [value for key, value in rows if key == name]

    @property
    def last_line(self):
        return self.output.splitlines()[-1]


@pytest.fixture
def run_hosts(tmp_path):
    """Runs a function's body in several processes. Once all have said "ready", one of them gets a signal."""
    running = []

    def run(body, *, processes=2, send=None, limit=60, environment=None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        script = f"{PREAMBLE}{body}\nerrors.run_command(main)\n"
        files = [tmp_path / f"{number}.txt" for number in range(processes)]
        variables = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **(environment or {})}
        for number, file in enumerate(files):
            command = [sys.executable, "-c", script, *map(str, (number, processes, port))]
            with file.open("w") as output:
                running.append(subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT))
        began = time.monotonic()
        if send:
            while not all("ready" in file.read_text() for file in files):
                assert all(process.poll() is None for process in running), [file.read_text() for file in files]
                time.sleep(0.05)
            began = time.monotonic()
            running[send[0]].send_signal(send[1])
        ended = {}
        while len(ended) < processes - (send is not None and send[1] == signal.SIGSTOP):
            for number, process in enumerate(running):
                if number not in ended and process.poll() is not None:
                    ended[number] = Ended(process.returncode, files[number].read_text(), time.monotonic() - began)
            assert time.monotonic() < began + limit, [file.read_text() for file in files]
            time.sleep(0.05)
        return [ended.get(number) for number in range(processes)]

    yield run
    for process in running:
        process.kill()
        process.wait()


def test_one_process_needs_nothing():
    hosts.join()
    hosts.join(processes=1)
    assert (hosts.index(), hosts.count(), hosts.is_first()) == (0, 1, True)
    assert re.fullmatch(r"process 0 of 1 \(.+\), 8 of 8 devices", hosts.describe())
    with hosts.watch():
        assert hosts.gather("a", {"b": (1, 2)}) == [{"b": [1, 2]}]  # as several would have it
        assert hosts.anywhere("a", True) and not hosts.anywhere("a", False)
        assert hosts.on_first("a", lambda: 3) == 3
        hosts.wait("a")
        hosts.compare({"a": float("nan")})
    for error in (DataError("damaged"), OSError(28, "No space left"), TypeError("a bug")):
        with pytest.raises(type(error)) as raised, hosts.watch(), hosts.agree("a"):
            raise error
        assert raised.value is error


def test_the_whole_of_an_array_of_one_process():
    values = np.arange(16, dtype=np.float32).reshape(8, 2)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("d"))
    for array in (values, values.T, jax.device_put(values, rows), np.float32(3), jax.numpy.float32(3), 3.0):
        whole = hosts.whole_array(array)
        assert type(whole) is np.ndarray and whole.shape == np.shape(array)
        np.testing.assert_array_equal(whole, np.asarray(array))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_process_hears_a_signal_at_its_next_tick(number):
    before = signal.getsignal(number)
    with hosts.stop_signals() as stop:
        assert stop.tick() is None and stop.wished() is None and stop.reason() is None
        os.kill(os.getpid(), number)
        assert stop.tick() == stop.wished() == stop.reason() == number.name
        assert signal.getsignal(number) is before  # a second one ends the process
    assert signal.getsignal(number) is before


def test_a_tick_costs_nothing():
    with hosts.stop_signals() as stop:
        began = time.perf_counter()
        for _ in range(10_000):
            stop.tick()
        assert (time.perf_counter() - began) / 10_000 < 5e-6  # 0.3 µs on an idle machine


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1",), "need all of --coordinator"),
        (("host:1", 2), "need all of --coordinator"),
        (("", 2, 0), "need all of --coordinator"),
        (("host", 2, 0), "write HOST:PORT"),
        (("host:1", 2, 2), "the first is 0 and the last 1"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(ConfigError, match=message):
        hosts.join(*flags)


def test_an_environment_of_one_task_is_one_process(monkeypatch):
    one = {"JOB_ID": "7", "STEP_NODELIST": "node1", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in one.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    hosts.join()
    assert hosts.count() == 1


def test_an_environment_of_several_tasks_is_never_several_runs(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # Open MPI 5 says no more
    with pytest.raises((ConfigError, HostsError), match="--processes=1"):
        hosts.join()


def test_who_does_not_come_is_told_in_time(run_hosts):
    nobody, alone, occupied = run_hosts(
        """
    began = time.monotonic()
    if number == 2:
        taken = socket.create_server(("", 0))
    port = taken.getsockname()[1] if number == 2 else globals()["port"] + number
    try:
        hosts.join(f"localhost:{port}", 2, 1 if number == 0 else 0, timeout=3)
    finally:
        say("seconds", time.monotonic() - began)

main = body
""",
        processes=3,
    )
    assert [process.status for process in (nobody, alone, occupied)] == [2, 2, 2]
    assert re.match(r"error: no coordinator answers at localhost:\d+ in 3 s \(.+\): start process 0", nobody.last_line)
    assert re.match(r"error: not all 2 processes came to localhost:\d+ in 3 s: start each", alone.last_line)
    assert re.match(r"error: port \d+ of --coordinator is not free", occupied.last_line)
    assert max(process.said("seconds")[0] for process in (nobody, alone, occupied)) < 8


def test_processes_agree(run_hosts):
    first, second = run_hosts("""
    def error_of(function):
        try:
            function()
        except Exception as error:
            return [type(error).__name__, str(error).replace(socket.gethostname(), "host")]

    def agreeing(error):
        with hosts.agree("reading"):
            if number == 1:
                raise error

    with hosts.watch(), hosts.stop_signals() as stop:
        say("who", [hosts.index(), hosts.count(), hosts.is_first(), len(hosts.describe().split())])
        say("gather", hosts.gather("a", {"number": number, "pair": (1, 2)}))
        say("anywhere", [hosts.anywhere("a", number == 1), hosts.anywhere("a", False)])
        say("first", hosts.on_first("a", lambda: [number, os.getpid()]))
        say("no file", error_of(lambda: hosts.on_first("a", lambda: open("/absent"))))
        say("data", error_of(lambda: agreeing(DataError("damaged"))))
        say("bug", error_of(lambda: agreeing(TypeError("unexpected"))))
        say("place", error_of(lambda: hosts.wait("here" if number == 0 else "there")))
        values = {"seed": 1, "data": {"classes": ["a", "bc"[number]], "rate": 0.1}, **({"more": 1} if number else {})}
        say("compare", error_of(lambda: hosts.compare({"config": values, "nan": float("nan")})))
        hosts.compare({"config": {"a": [1, {"b": None}]}})
        mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, PartitionSpec("d"))
        array = jax.make_array_from_process_local_data(rows, np.full((1, 2), number, np.float32))
        say("whole", [hosts.whole_array(one).tolist() for one in (array, jax.jit(jnp.sum)(array), np.arange(2))])
        say("large", len(hosts.gather("a", "x" * 5_000_000)[1]))
        began = time.perf_counter()
        for _ in range(10_000):
            stop.tick()
        say("tick", (time.perf_counter() - began) / 10_000)
    with hosts.watch():  # a second run
        time.sleep(3 * number)
    say("end", hosts.gather("end", number))
""")
    assert (first.status, second.status) == (0, 0), first.output + second.output

    def both(name):
        assert len(first.said(name)) == len(second.said(name)) == 1
        return first.said(name)[0], second.said(name)[0]

    def same(name):
        ours, theirs = both(name)
        assert ours == theirs
        return ours

    assert both("who") == ([0, 2, True, 9], [1, 2, False, 9])
    assert same("gather") == [{"number": 0, "pair": [1, 2]}, {"number": 1, "pair": [1, 2]}]
    assert same("anywhere") == [True, False]
    assert same("first")[0] == 0
    assert [kind for kind, _ in both("no file")] == ["FileNotFoundError", "HostsError"]
    assert second.said("no file")[0][1].startswith("process 0 (host): ")
    assert both("data") == (["HostsError", "process 1 (host): damaged"], ["DataError", "damaged"])
    assert both("bug") == (["HostsError", "process 1 (host): TypeError: unexpected"], ["TypeError", "unexpected"])
    kind, message = same("place")
    assert (kind, "process 0 (host) is at 'here', process 1 (host) at 'there'" in message) == ("HostsError", True)
    kind, message = same("compare")
    assert kind == "HostsError" and "seed" not in message and "nan" not in message
    assert 'config.data.classes[1] is "c" on process 1 (host), but "b" on process 0 (host)' in message
    assert "config.more is 1 on process 1 (host), but absent on process 0 (host)" in message
    assert same("whole") == [[[0, 0], [1, 1]], 2, [0, 1]]
    assert same("large") == 5_000_000
    assert max(both("tick")) < 20e-6
    assert same("end") == [0, 1]


def test_an_error_of_one_ends_the_other_that_waits_in_a_collective(run_hosts):
    first, second = run_hosts("""
    step = common()
    with hosts.watch(), hosts.stop_signals() as stop:
        step()
        if number == 1:
            raise DataError("image 7 is damaged")
        while True:
            step()
""")
    assert (first.status, second.status) == (2, 2), first.output + second.output
    assert second.last_line == "error: image 7 is damaged"
    assert re.fullmatch(r"error: process 1 \(.+\): image 7 is damaged", first.last_line)
    assert "Traceback" not in first.output


def test_the_process_with_the_store_leaves_last(run_hosts):
    """Else jaxlib would end the other, and show a stack."""
    first, second = run_hosts("""
    with hosts.watch(), hosts.stop_signals() as stop:
        if number == 0:
            raise DataError("image 7 is damaged")
        while True:
            stop.tick()
            time.sleep(0.1)
""")
    assert (first.status, second.status) == (2, 2), first.output + second.output
    assert first.output == "error: image 7 is damaged\n"
    assert re.fullmatch(r"error: process 0 \(.+\): image 7 is damaged\n", second.output)
    assert second.seconds < first.seconds + 0.1


def test_a_killed_first_process_is_named(run_hosts):
    _, second = run_hosts(STEPPING, send=(0, signal.SIGKILL))
    assert second.status == 2, second.output
    assert re.match(r"error: process 0 \(.+\) does not answer: .+ from the last checkpoint", second.last_line)
    assert second.seconds < 20


@pytest.mark.slow
def test_a_killed_second_process_is_named(run_hosts):
    first, _ = run_hosts(STEPPING, send=(1, signal.SIGKILL), limit=120)
    assert first.status == 2, first.output
    assert re.match(r"error: process 1 \(.+\) does not answer: .+ from the last checkpoint", first.last_line)
    assert first.seconds < 45


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_cut_off_is_named(run_hosts, number):
    """Its connections stay open, as with a machine without power."""
    ended = run_hosts(STEPPING, send=(number, signal.SIGSTOP), limit=120)
    assert ended[1 - number].status == 2, ended[1 - number].output
    assert re.match(rf"error: process {number} \(.+\) does not answer", ended[1 - number].last_line)
    assert ended[1 - number].seconds < 110


@pytest.mark.slow
def test_a_crash_is_named(run_hosts):
    first, second = run_hosts(STEPPING, send=(1, signal.SIGABRT))
    assert (first.status, second.status) == (2, -signal.SIGABRT)
    assert re.match(r"error: process 1 \(.+\) crashed: its own output says why", first.last_line)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_main_thread_that_hangs_is_ended(run_hosts, number):
    ended = run_hosts(f"""
    with hosts.watch():
        hosts.wait("begin")
        if number == {number}:
            raise DataError("image 7 is damaged")
        time.sleep(1000)
""")
    assert [process.status for process in ended] == [2, 2]
    assert ended[number].last_line == "error: image 7 is damaged"
    assert re.fullmatch(rf"error: process {number} \(.+\): image 7 is damaged", ended[1 - number].last_line)


@pytest.mark.slow
def test_a_thread_that_stays_does_not_keep_a_failed_process(run_hosts):
    first, second = run_hosts("""
    with hosts.watch():
        if number == 1:
            threading.Thread(target=time.sleep, args=(1000,)).start()
            raise DataError("image 7 is damaged")
        hosts.wait("end")
""")
    assert [first.status, second.status] == [2, 2]
    assert second.output == "error: image 7 is damaged\n"
    assert first.seconds < 40


@pytest.mark.slow
def test_bugs_keep_their_traceback(run_hosts):
    """Also where both processes have the same one, and each could blame the other."""
    one = run_hosts("""
    with hosts.watch():
        if number == 0:
            raise TypeError("a bug")
        hosts.wait("end")
""")
    assert [process.status for process in one] == [1, 2]
    assert one[0].last_line == "TypeError: a bug"
    assert re.fullmatch(r"error: process 0 \(.+\): TypeError: a bug", one[1].last_line)


def common_stop(ended, name, status):
    assert [process.status for process in ended] == [status] * len(ended), [process.output for process in ended]
    stops = [process.said("stop") for process in ended]
    assert stops[0] == stops[1] and len(stops[0]) == 1 and stops[0][0][0] == name
    assert ended[0].last_line == ended[1].last_line == f"stopped after step {stops[0][0][1]}"
    assert max(process.seconds for process in ended) < 20


def test_sigterm_to_the_second_stops_both_at_one_step(run_hosts):
    common_stop(run_hosts(STEPPING, send=(1, signal.SIGTERM)), "SIGTERM", 143)


def test_sigint_to_the_first_stops_both_at_one_step(run_hosts):
    common_stop(run_hosts(STEPPING, send=(0, signal.SIGINT)), "SIGINT", 130)


@pytest.mark.slow
def test_sigterm_without_jax_preemption_service(run_hosts):
    ended = run_hosts(STEPPING, send=(1, signal.SIGTERM), environment={"JAX_ENABLE_PREEMPTION_SERVICE": "0"})
    common_stop(ended, "SIGTERM", 143)


@pytest.mark.slow
def test_three_processes(run_hosts):
    common_stop(run_hosts(STEPPING, processes=3, send=(2, signal.SIGTERM)), "SIGTERM", 143)


def test_sigterm_in_unequal_work_of_each_process(run_hosts):
    """The second has done its share; the first breaks its own off and knows the reason as soon as the second."""
    ended = run_hosts(
        """
    with hosts.watch(), hosts.stop_signals() as stop:
        say("ready")
        while number == 0 and not stop.wished():
            time.sleep(0.01)
        assert hosts.anywhere("not filled", number == 0)
        say("reason", stop.reason())
        hosts.wait("saved")
        raise Stopped(stop.reason())
""",
        send=(1, signal.SIGTERM),
    )
    assert [process.status for process in ended] == [143, 143], [process.output for process in ended]
    assert [process.said("reason") for process in ended] == [["SIGTERM"], ["SIGTERM"]]


@pytest.mark.slow
def test_who_leaves_alone_when_stopped_takes_the_others_along(run_hosts):
    ended = run_hosts(
        """
    with hosts.watch(), hosts.stop_signals() as stop:
        say("ready")
        while number == 0:
            if wish := stop.wished():
                raise Stopped(wish, "stopped in the middle")
            time.sleep(0.01)
        hosts.wait("filled")
""",
        send=(1, signal.SIGTERM),
    )
    assert [process.status for process in ended] == [143, 143], [process.output for process in ended]
    assert re.fullmatch(r"stopped by SIGTERM, as process 0 \(.+\)", ended[1].last_line)
