"""What this process knows of itself as one of several: its number, the others' names, how its run stands."""

import itertools
import socket
import threading
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from effnet_jax.hosts.watching import Run

# Read as `names.SILENCE`, never imported one by one: so a value that is set here counts wherever it is read.
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
        self.run: Run | None = None
        self.status: int | None = None  # with which this process is about to end, if not well
        self.connecting = False
        self.alone = False  # the store is gone: a request to it would not return
        self.refused = threading.Event()
        self.handler: Any = None  # of SIGABRT; C keeps no reference

    def greet(self) -> None:
        """Leaves in the store what `answers` looks for."""
        state().client.key_value_set(f"effnet_jax/here/{state().process_id}", "", True)

    def answers(self) -> bool:
        """Says whether the store answers: by the one request that comes back in any case."""
        try:
            state().client.blocking_key_value_get(f"effnet_jax/here/{state().process_id}", 2000)
        except jax.errors.JaxRuntimeError:
            return False
        return True


here = _Here()


def state() -> Any:
    """Returns JAX's `client` (the store), `service` and `preemption_sync_manager`: private, so asked for only here."""
    from jax._src import distributed

    return distributed.global_state


def index() -> int:
    """Returns the number of this process, from 0."""
    return jax.process_index() if state().client else 0


def count() -> int:
    """Returns how many processes the run has."""
    return jax.process_count() if state().client else 1


def is_first() -> bool:
    """Says whether this is the process that writes what is written once."""
    return index() == 0


def describe() -> str:
    """Returns a line such as `process 1 of 2 (hostname), 4 of 8 devices`."""
    devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
    return f"process {index()} of {count()} ({socket.gethostname()}), {devices}"


def who(*processes: int) -> str:
    """Names processes for a message."""
    return ", ".join(f"process {i} ({here.names[i]})" if here.names else f"process {i}" for i in processes)
