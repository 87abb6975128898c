"""Several processes (hosts) as one run: they join, agree, wait, stop and fail together.

The one module that knows how many processes there are. With one process everything here returns at once.

Processes talk through the key-value store of JAX's coordination service, which lives in the first process, and never
through a device computation, which would wait for a process that failed. Around a run, `watch` keeps a thread that
tells the others each second that this process lives, and hears who failed, fell silent or wishes to stop.
"""

import atexit
import contextlib
import ctypes
import itertools
import json
import math
import multiprocessing.util  # so that its exit handler, which waits for children, runs after ours
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from effnet_jax.errors import ConfigError, EffnetError, HostsError, Stopped

T = TypeVar("T")

BEAT = 1.0  # seconds between two looks at the store
SILENCE = 30.0  # without a beat a process is dead; Python code that holds its interpreter longer would seem so
GRACE = 10.0  # what a main thread that is stuck gets, once another process failed
LEAVE = 12.0  # after a failure, what Python's own way out of the process may take
LINGER = 13.0  # how long the process with the store waits for the others to leave: a little longer
HEARTBEAT = 60  # JAX's own: says that the first process's machine is cut off, when the store does not answer any more
AGAIN = "start all processes again: they go on from the last checkpoint"
FLAGS = "--coordinator=HOST:PORT --processes=N --process=I"


class _Here:
    """What this process knows of itself as one of several."""

    def __init__(self) -> None:
        self.names: list[str] = []  # of all hosts
        self.first = 0  # the process with the store
        self.calls, self.runs = itertools.count(), itertools.count()
        self.run: _Run | None = None
        self.status: int | None = None  # with which this process is about to end, if not well
        self.connecting = False
        self.alone = False  # the store is gone: a request to it would not return
        self.refused = threading.Event()
        self.handler: Any = None  # of SIGABRT; C keeps no reference

    def greet(self) -> None:
        """Leaves in the store what `answers` looks for."""
        _state().client.key_value_set(f"effnet_jax/here/{_state().process_id}", "", True)

    def answers(self) -> bool:
        """Says whether the store answers: by the one request that comes back in any case."""
        try:
            _state().client.blocking_key_value_get(f"effnet_jax/here/{_state().process_id}", 2000)
        except jax.errors.JaxRuntimeError:
            return False
        return True


_here = _Here()


def _state() -> Any:
    """Returns JAX's `client` (the store), `service` and `preemption_sync_manager`: private, so asked for only here."""
    from jax._src import distributed

    return distributed.global_state


def index() -> int:
    """Returns the number of this process, from 0."""
    return jax.process_index() if _state().client else 0


def count() -> int:
    """Returns how many processes the run has."""
    return jax.process_count() if _state().client else 1


def is_first() -> bool:
    """Says whether this is the process that writes what is written once."""
    return index() == 0


def describe() -> str:
    """Returns a line such as `process 1 of 2 (hostname), 4 of 8 devices`."""
    devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
    return f"process {index()} of {count()} ({socket.gethostname()}), {devices}"


def _who(*processes: int) -> str:
    return ", ".join(f"process {i} ({_here.names[i]})" if _here.names else f"process {i}" for i in processes)


class _Waiting:
    """Says once, after a minute, what is waited for."""

    def __init__(self) -> None:
        self.until = time.monotonic() + 60

    def say(self, words: Callable[[], str]) -> None:
        if time.monotonic() > self.until:
            self.until = math.inf
            print(f"waiting for {words()}", file=sys.stderr, flush=True)


# ---- joining


def join(coordinator: str = "", processes: int = 0, process: int = -1, *, timeout: int = 300) -> None:
    """Joins the hosts of a run, before JAX touches a device: by flags, or by itself where the environment has several.

    That is what JAX detects: a Cloud TPU slice, SLURM, an indexed job of Kubernetes, Open MPI. On one host, which
    `processes=1` asserts, nothing happens.

    Args:
      coordinator: `HOST:PORT` of process 0, which all can reach.
      processes: how many there are.
      process: which this is, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ConfigError: flags that are missing or cannot be.
      HostsError: no coordinator answers, or not all processes came.
    """
    if processes == 1 or _state().client:
        return
    local_devices = None
    if coordinator or processes or process != -1:
        _check_flags(coordinator, processes, process)
    elif found := _detect(timeout):
        coordinator, processes, process, local_devices = found
    else:
        return
    _prepare()
    try:
        _connect(coordinator, processes, process, local_devices, timeout)
        # With another number than the others' a process would wait for ever when the devices are counted.
        said = _exchange("join/", process, processes, "number of processes", processes)
        if len(set(said)) > 1:
            raise HostsError(f"the processes were told of {', '.join(map(str, said))} processes: give all one number")
        if jax.process_count() != processes:
            raise HostsError(
                f"{processes} processes came, but JAX counts {jax.process_count()}: have all use the same kind of "
                "device (JAX_PLATFORMS), or start one with --processes=1"
            )
        _meet()
    except BaseException as error:
        if _here.connecting or _state().client:  # jaxlib would wait for the others, and abort
            _leave_soon(error)
        raise


def _check_flags(coordinator: str, processes: int, process: int) -> None:
    if not coordinator or not processes or process == -1:
        raise ConfigError(f"several processes need all of {FLAGS}: the address of process 0, how many, and which")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator={coordinator}: write HOST:PORT, process 0's host and a free port there")
    if not 0 <= process < processes:
        raise ConfigError(f"--process={process}: of {processes} processes, the first is 0 and the last {processes - 1}")


def _detect(timeout: int) -> Any:
    """Returns coordinator, processes, process and local devices, where an environment runs several processes."""
    from jax._src import cloud_tpu_init, clusters

    # Only hints of one's own environment are followed: asking a server that is not there would take minutes.
    hints = {"SLURM_JOB_ID", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"} & os.environ.keys()
    if not hints and not (cloud_tpu_init.running_in_cloud_tpu_vm and _tpu_has_peers()):
        return None
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    try:
        # The address comes last, since it waits for a name server.
        processes = detect("unasked", None, None, (), None, timeout)[1]
        if processes and processes > 1:
            return detect(os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, timeout)
    except Exception as error:
        raise HostsError(f"the hosts of this run are unknown ({error}): add {FLAGS}, or --processes=1") from error
    if not processes and (int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1 or "JOB_COMPLETION_INDEX" in hints):
        raise ConfigError(f"started as one of several, but JAX cannot find the others: add {FLAGS}, or --processes=1")
    return None


def _tpu_has_peers() -> bool:
    """Says whether a TPU machine's environment or metadata server may know of others."""
    if {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH"} & os.environ.keys():
        return True
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return False
    address = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    try:
        socket.create_connection((address, 80), timeout=3).close()
    except OSError:
        return False
    return True


def _connect(coordinator: str, processes: int, process: int, local_devices: Any, timeout: int) -> None:
    """Starts JAX's coordination service and client. What jaxlib would abort the process for raises `HostsError`."""
    until = time.monotonic() + timeout
    host, _, port = coordinator.rpartition(":")
    if process == 0:
        _check_port(int(port))
    else:
        _await_port(host.strip("[]"), int(port), until, timeout)
    if getattr(jax.config, "jax_cpu_collectives_implementation", None) is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    failed: list[BaseException] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                local_devices,
                "deactivate",
                initialization_timeout=2 * timeout + 60,  # longer than we wait, since jaxlib ends by abort()
                heartbeat_timeout_seconds=HEARTBEAT,
            )
        except BaseException as error:
            failed.append(error)

    _here.connecting = True
    # In a thread, so that Ctrl-C and the deadline are heard.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    waiting = _Waiting()
    while thread.is_alive():
        thread.join(0.05)
        waiting.say(lambda: f"{processes} processes to meet at {coordinator}")
        if _here.refused.is_set() or time.monotonic() > until:
            late = f"not all {processes} processes came to {coordinator} in {timeout} s"
            refused = f"{coordinator} refuses process {process} (its reason is above)"
            raise HostsError(
                f"{refused if _here.refused.is_set() else late}: start each of 0 to {processes - 1} once, all with the "
                "same --coordinator and --processes"
            )
    _here.connecting = False
    if failed:
        raise failed[0]
    _here.greet()


def _check_port(port: int) -> None:
    """Makes sure that nobody listens there: gRPC would share the port with another run, or end in SIGSEGV."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise HostsError(f"port {port} of --coordinator is not free ({error.strerror}): choose another") from error


def _await_port(host: str, port: int, until: float, timeout: int) -> None:
    while True:
        try:
            socket.create_connection((host, port), timeout=min(5, timeout)).close()
            return
        except OSError as error:  # not started yet, or a name that is not known yet
            if time.monotonic() > until:
                raise HostsError(
                    f"no coordinator answers at {host}:{port} in {timeout} s ({error.strerror or error}): start "
                    "process 0 there, and let the network pass this port"
                ) from error
        time.sleep(0.2)


def _prepare() -> None:
    """Has this process end in order: with its own status, and with our words where jaxlib would abort it."""
    if _here.handler is None:
        _here.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_aborted)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), _here.handler)
        atexit.register(lambda: None if _here.status is None else _depart())


def _meet() -> None:
    """Learns the hosts' names, and which of them has the store."""
    _here.greet()
    rows = gather("meeting", [socket.gethostname(), _state().service is not None])
    _here.names, _here.first = [name for name, _ in rows], [store for _, store in rows].index(True)


# ---- agreeing


def _exchange(folder: str, number: int, total: int, what: str, value: Any, patience: float = math.inf) -> list[Any]:
    """Has process 0 collect a value of each process, and hand all of them to everybody."""
    store, folder = _state().client, f"effnet_jax/{folder}"
    store.key_value_set(f"{folder}{number}", json.dumps([what, value]))
    if number == 0:
        rows = [_await_key(folder, str(i), i, total, what, patience) for i in range(total)]
        store.key_value_set(f"{folder}all", f"[{','.join(rows)}]")
    rows = json.loads(_await_key(folder, "all", 0, total, what, patience))
    for i, (where, _) in enumerate(rows):
        if where != rows[0][0]:
            raise HostsError(f"{_who(0)} is at {rows[0][0]!r}, {_who(i)} at {where!r}: do all run the same program?")
    return [value for _, value in rows]


def _await_key(folder: str, key: str, source: int, total: int, what: str, patience: float) -> str:
    store, began, waiting = _state().client, time.monotonic(), _Waiting()

    def missing() -> str:
        there = {name.rpartition("/")[2] for name, _ in store.key_value_dir_get(folder)}
        return f"{_who(*(i for i in range(total) if str(i) not in there)) or _who(0)}: {what}"

    while True:
        try:
            return store.blocking_key_value_get(folder + key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if run := _here.run:
            run.check()
            if source in run.ends:
                raise HostsError(f"{_who(source)} has ended, while {_who(index())} is at {what!r}")
        if time.monotonic() - began > patience:
            raise TimeoutError(what)
        waiting.say(missing)


def gather(what: str, value: Any, *, patience: float = math.inf) -> list[Any]:
    """Returns the values of all processes, in their order. All call it, in the same order, from the main thread.

    Args:
      what: names the place in the program, in the field's words: a process that waits long prints it.
      value: what JSON can hold; it comes back as JSON has it, with one process too.
      patience: seconds to wait; by default as long as the others live.

    Raises:
      HostsError: another process failed, fell silent, or is at another place.
      Stopped: another process was stopped.
    """
    if count() == 1:
        return [json.loads(json.dumps(value))]
    call = next(_here.calls)
    values = _exchange(f"gather{call}/", index(), count(), what, value, patience)
    if index() == 0 and call:  # whoever is here has read the values of the call before
        _state().client.key_value_delete(f"effnet_jax/gather{call - 1}/")
    return values


def wait(what: str) -> None:
    """Returns when all processes are here."""
    gather(what, None)


def anywhere(what: str, condition: bool) -> bool:
    """Says, to all processes alike, whether the condition holds on one of them."""
    return any(gather(what, bool(condition)))


@contextlib.contextmanager
def agree(what: str) -> Iterator[list[Any]]:
    """Makes an error that is raised inside on one process an error of all, when they have come to the block's end.

    For what each process does alone. A collective computation inside would leave the others waiting; an error there
    ends the run by `watch`.

    Yields:
      A list for what a process wants to add; after the block it has what all added.

    Raises:
      HostsError: an error was raised on another process; the process itself keeps its own.
    """
    added: list[Any] = []
    try:
        yield added
    except Exception as error:
        if count() > 1 and not isinstance(error, HostsError):
            with contextlib.suppress(HostsError, TimeoutError, jax.errors.JaxRuntimeError):
                gather(what, {"error": _told(error)}, patience=60)  # no longer: the others may be in a collective
        raise
    rows = gather(what, {"added": added})
    for row in rows:
        if "error" in row:
            raise HostsError(row["error"])
    added[:] = [value for row in rows for value in row["added"]]


def on_first(what: str, function: Callable[[], T]) -> T:
    """Runs a function on the first process only. Its result, which JSON can hold, or its error is everybody's."""
    with agree(what) as added:
        if is_first():
            added.append(function())
    return added[0]


def compare(values: Mapping[str, Any]) -> None:
    """Makes sure that all processes were given the same.

    Args:
      values: nested dicts and lists of what JSON can hold; long ones better as a hash.

    Raises:
      HostsError: on all processes the same: who differs from process 0, where, and both values.
    """
    first, *others = (dict(row) for row in gather("compared values", list(_leaves(values, ""))))
    different = [
        f"{key} is {_short(row.get(key))} on {_who(i)}, but {_short(first.get(key))} on {_who(0)}"
        for i, row in enumerate(others, 1)
        for key in {**first, **row}
        if row.get(key) != first.get(key)
    ]
    if different:
        more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
        raise HostsError(f"{'; '.join(different[:5])}{more}: give all processes the same command, config and data")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yields dotted paths and JSON, in which no number differs from itself."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and value:
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    else:
        yield path, json.dumps(value, default=str)


def _short(text: str | None) -> str:
    return "absent" if text is None else text if len(text) <= 60 else f"{text[:57]}..."


def _told(error: BaseException) -> str:
    """Returns what other processes say of this one's error."""
    if isinstance(error, HostsError):  # names its process already
        return str(error)
    kind = "" if isinstance(error, EffnetError | OSError) else f"{type(error).__name__}: "
    return f"{_who(index())}: {kind}{error}"


# ---- failing together


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
    _prepare()
    if not _here.names:
        _meet()
    run = _here.run = _Run(f"effnet_jax/run{next(_here.runs)}/")
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
        if _here.status is None:
            run.closed.set()
            run.thread.join()
            _here.run = None


class _Run:
    """What this process knows of the others while it watches; `look`, in a thread of its own, keeps it fresh."""

    def __init__(self, folder: str):
        self.folder, self.me = folder, index()
        self.others = [i for i in range(count()) if i != self.me]
        self.beats, self.stops = itertools.count(), itertools.count()
        self.period = BEAT * max(1.0, count() / 256)  # a look costs the first process 0.6 ms at 256 processes
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
            # Without an answer jaxlib aborts, and `_aborted` goes on from there.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.look()
            if time.monotonic() > self.deadline:
                self.give_up()

    def put(self, key: str, value: str) -> None:
        if not _here.alone:
            _state().client.key_value_set(self.folder + key, value, True)

    def look(self) -> None:
        """Tells that this process lives, and takes in what the others told: one request of each kind."""
        self.put(f"beat/{self.me}", str(next(self.beats)))
        told = {key.removeprefix(self.folder): value for key, value in _state().client.key_value_dir_get(self.folder)}
        now = time.monotonic()
        paused, self.looked = now - self.looked > SILENCE / 3, now  # this process itself, not the others
        if self.stop:  # before the ends: who was stopped at a common tick has told it
            self.stop.hear(told)
        for i in self.others:
            beat = told.get(f"beat/{i}", "")
            if f"end/{i}" in told:
                self.ends[i] = json.loads(told[f"end/{i}"])
                self.fail(self.ends[i])
            elif beat != self.heard[i][0] or paused:
                self.heard[i] = (beat, now)
            elif now - self.heard[i][1] > SILENCE and i not in self.ends:
                self.ends[i] = {"error": _lost(i)}
                self.fail(self.ends[i])

    def fail(self, end: dict[str, str]) -> None:
        """Takes over how another process ended, unless that was well."""
        if self.failure or self.left or not end:
            return
        self.failure = end
        # Who knows of the wish to stop is saving, which takes what it takes.
        patient = "signal" in end and self.stop and self.stop.told
        self.deadline = time.monotonic() + (300 if patient else GRACE)
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
                self.deadline = time.monotonic() + 2 * GRACE
            raise self.error()

    def end_well(self) -> None:
        """Waits until all processes have come to the end."""
        self.leaving = True
        self.put(f"end/{self.me}", "{}")
        waiting = _Waiting()
        while len(self.ends) < len(self.others):
            self.check()
            time.sleep(0.02)
            waiting.say(lambda: f"{_who(*(i for i in self.others if i not in self.ends))}: the end of the run")
        self.check()

    def end_badly(self, error: BaseException) -> BaseException:
        """Tells the others, and returns the error that this process is to end with."""
        self.deadline = math.inf
        _here.status = _status(error)
        if not isinstance(error, EffnetError | OSError | KeyboardInterrupt | SystemExit):
            # Such as a connection that broke in a collective: is it another's fault? Who lives shows it by two beats.
            late = time.monotonic() + 2 * self.period
            while not self.failure and any(i not in self.ends and came < late for i, (_, came) in self.heard.items()):
                time.sleep(0.05)
            if self.failure and not self.failure.get("error", "").startswith(f"{_who(self.me)}: "):
                error = self.error()
        self.deadline, self.leaving, self.left = math.inf, True, True
        _leave_soon(error)
        if isinstance(error, KeyboardInterrupt):
            name = getattr(error, "signal", "SIGINT")
            end = {"signal": name, "words": f"stopped by {name}, as {_who(self.me)}"}
        else:
            end = {"error": _told(error)}
        self.put(f"end/{self.me}", json.dumps(end))
        return error

    def give_up(self) -> None:
        """Ends this process from the thread, since its main thread does not come."""
        error = self.error()
        print(error if isinstance(error, Stopped) else f"error: {error}", file=sys.stderr, flush=True)
        _leave_soon(error)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.put(f"end/{self.me}", json.dumps(self.failure))
        _depart()


def _lost(process: int) -> str:
    return f"{_who(process)} does not answer: it was killed or cut off; {AGAIN}"


def _leave_soon(error: BaseException) -> None:
    """Notes the status that this process ends with, and ends it where it does not come to that by itself."""
    _here.status = _status(error)
    backstop = threading.Timer(LEAVE + (LINGER if _state().service else 0), _exit, (_here.status,))
    backstop.daemon = True
    backstop.start()


def _status(error: BaseException) -> int:
    """Returns the exit status that `run_command` and Python give an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "status", 130)
    return 2 if isinstance(error, EffnetError | OSError) else 1


def _depart() -> None:
    """Ends this process now. JAX's own way would wait minutes for processes that do not come.

    The process with the store goes last: jaxlib aborts the others when it goes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    assert _here.status is not None
    if (run := _here.run) and _here.names:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            run.put(f"gone/{run.me}", "")
            until = time.monotonic() + LINGER
            while _state().service and time.monotonic() < until:
                gone = {key.rpartition("/")[2] for key, _ in _state().client.key_value_dir_get(f"{run.folder}gone/")}
                if all(str(i) in gone or run.ends.get(i) == {"error": _lost(i)} for i in run.others):
                    time.sleep(0.2)  # they have said so, and go
                    break
                time.sleep(0.05)
    _exit(_here.status)


def _exit(status: int) -> None:
    for child in multiprocessing.active_children():  # such as loading workers, which Python would end
        child.kill()
    os._exit(status)


def _aborted(number: int) -> None:
    """Handles SIGABRT, on the thread of jaxlib that called abort() since the coordination service left or refused it.

    That thread may neither return nor raise. It lets the main thread do that, and ends the process if it does not.
    """
    run, park = _here.run, threading.Event().wait
    if _here.connecting:
        _here.refused.set()
        park()
    ending = run.left if run else _here.status is not None
    if not ending and _here.answers():  # something else crashed this process, which ends as it would have
        if run:
            run.put(f"end/{run.me}", json.dumps({"error": f"{_who(run.me)} crashed: its own output says why"}))
            run.put(f"gone/{run.me}", "")
        ctypes.CDLL(None).signal(number, None)
        os.abort()
    _here.alone = True
    if run:
        run.fail({"error": _lost(_here.first)})
        while time.monotonic() < run.deadline:
            time.sleep(0.05)
        run.give_up()
    if not ending:
        print(f"error: {_lost(_here.first)}", file=sys.stderr, flush=True)
        _exit(2)
    park()


# ---- stopping together


class Stop:
    """A wish to stop by SIGTERM or SIGINT to any process, and the tick at which all follow it."""

    def __init__(self, run: "_Run | None" = None):
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
                self.name = _state().client.key_value_try_get(f"{self.run.folder}{self.folder}wish")
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
                    _state().client.key_value_set(f"{self.run.folder}{self.folder}wish", asked)
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
        return "SIGTERM" if _state().client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE") else None
    except jax.errors.JaxRuntimeError:
        return None


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns SIGTERM and SIGINT into a wish that the loop asks for; a second one ends the process at once.

    With several processes it is inside of `watch`, and SIGTERM stays with JAX's preemption service, which orbax asks.
    """
    stop = Stop(_here.run)
    if _here.run:
        _here.run.stop = stop
    numbers = [signal.SIGINT] if _here.run and _state().preemption_sync_manager else [signal.SIGTERM, signal.SIGINT]
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
