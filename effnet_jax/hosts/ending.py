"""How this process ends after a failure: in order, in time, with its own status, whatever jaxlib would do."""

import atexit
import contextlib
import ctypes
import json
import multiprocessing.util  # so that its exit handler, which waits for children, runs after ours
import os
import signal
import sys
import threading
import time

import jax

from effnet_jax.errors import EffnetError
from effnet_jax.hosts import names
from effnet_jax.hosts.names import here, state, who


def prepare() -> None:
    """Has this process end in order: with its own status, and with our words where jaxlib would abort it."""
    if here.handler is None:
        here.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_aborted)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), here.handler)
        atexit.register(lambda: None if here.status is None else depart())


def lost(process: int) -> str:
    """Returns what is said of a process that went without a word."""
    return f"{who(process)} does not answer: it was killed or cut off; {names.AGAIN}"


def leave_soon(error: BaseException) -> None:
    """Notes the status that this process ends with, and ends it where it does not come to that by itself."""
    here.status = status_of(error)
    backstop = threading.Timer(names.LEAVE + (names.LINGER if state().service else 0), _exit, (here.status,))
    backstop.daemon = True
    backstop.start()


def status_of(error: BaseException) -> int:
    """Returns the exit status that `run_command` and Python give an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "status", 130)
    return 2 if isinstance(error, EffnetError | OSError) else 1


def depart() -> None:
    """Ends this process now. JAX's own way would wait minutes for processes that do not come.

    The process with the store goes last: jaxlib aborts the others when it goes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    assert here.status is not None
    if (run := here.run) and here.names:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            run.put(f"gone/{run.me}", "")
            until = time.monotonic() + names.LINGER
            while state().service and time.monotonic() < until:
                gone = {key.rpartition("/")[2] for key, _ in state().client.key_value_dir_get(f"{run.folder}gone/")}
                if all(str(i) in gone or run.ends.get(i) == {"error": lost(i)} for i in run.others):
                    time.sleep(0.2)  # they have said so, and go
                    break
                time.sleep(0.05)
    _exit(here.status)


def _exit(status: int) -> None:
    for child in multiprocessing.active_children():  # such as loading workers, which Python would end
        child.kill()
    os._exit(status)


def _aborted(number: int) -> None:
    """Handles SIGABRT, on the thread of jaxlib that called abort() since the coordination service left or refused it.

    That thread may neither return nor raise. It lets the main thread do that, and ends the process if it does not.
    """
    run, park = here.run, threading.Event().wait
    if here.connecting:
        here.refused.set()
        park()
    ending = run.left if run else here.status is not None
    if not ending and here.answers():  # something else crashed this process, which ends as it would have
        if run:
            run.put(f"end/{run.me}", json.dumps({"error": f"{who(run.me)} crashed: its own output says why"}))
            run.put(f"gone/{run.me}", "")
        ctypes.CDLL(None).signal(number, None)
        os.abort()
    here.alone = True
    if run:
        run.fail({"error": lost(here.first)})
        while time.monotonic() < run.deadline:
            time.sleep(0.05)
        run.give_up()
    if not ending:
        print(f"error: {lost(here.first)}", file=sys.stderr, flush=True)
        _exit(2)
    park()
