"""Processes that come to the same: values of all of them, an error of one that is everybody's, whole arrays."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from effnet_jax.errors import EffnetError, HostsError
from effnet_jax.hosts.names import count, here, index, is_first, state, who

T = TypeVar("T")


class Waiting:
    """Says once, after a minute, what is waited for."""

    def __init__(self) -> None:
        self.until = time.monotonic() + 60

    def say(self, words: Callable[[], str]) -> None:
        if time.monotonic() > self.until:
            self.until = math.inf
            print(f"waiting for {words()}", file=sys.stderr, flush=True)


def exchange(folder: str, number: int, total: int, what: str, value: Any, patience: float = math.inf) -> list[Any]:
    """Has process 0 collect a value of each process, and hand all of them to everybody."""
    store, folder = state().client, f"effnet_jax/{folder}"
    store.key_value_set(f"{folder}{number}", json.dumps([what, value]))
    if number == 0:
        rows = [_await_key(folder, str(i), i, total, what, patience) for i in range(total)]
        store.key_value_set(f"{folder}all", f"[{','.join(rows)}]")
    rows = json.loads(_await_key(folder, "all", 0, total, what, patience))
    for i, (where, _) in enumerate(rows):
        if where != rows[0][0]:
            raise HostsError(f"{who(0)} is at {rows[0][0]!r}, {who(i)} at {where!r}: do all run the same program?")
    return [value for _, value in rows]


def _await_key(folder: str, key: str, source: int, total: int, what: str, patience: float) -> str:
    store, began, waiting = state().client, time.monotonic(), Waiting()

    def missing() -> str:
        there = {name.rpartition("/")[2] for name, _ in store.key_value_dir_get(folder)}
        return f"{who(*(i for i in range(total) if str(i) not in there)) or who(0)}: {what}"

    while True:
        try:
            return store.blocking_key_value_get(folder + key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if run := here.run:
            run.check()
            if source in run.ends:
                raise HostsError(f"{who(source)} has ended, while {who(index())} is at {what!r}")
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
    call = next(here.calls)
    values = exchange(f"gather{call}/", index(), count(), what, value, patience)
    if index() == 0 and call:  # whoever is here has read the values of the call before
        state().client.key_value_delete(f"effnet_jax/gather{call - 1}/")
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
                gather(what, {"error": told_of(error)}, patience=60)  # no longer: the others may be in a collective
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


def whole_array(array: Any) -> np.ndarray:
    """Returns the whole of an array, however it is sharded over the processes.

    Where no process has all of it, this is a computation of all devices: all call it, in the same order.

    Args:
      array: any shape; what NumPy can hold, or a JAX array.

    Returns:
      The same shape and values, in this process's memory. It may be the array's own memory, so it is not to be changed.
    """
    return np.asarray(readable(array))


def is_readable(array: Any) -> bool:
    """Whether this process has all of an array."""
    return not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated


def readable(array: Any) -> Any:
    """Returns an array that this process can read: itself, or where others hold pieces of it, the whole of it.

    As `whole_array`, it may be a computation of all devices.
    """
    if not is_readable(array):
        from jax.experimental import multihost_utils  # here, so that importing the module stays cheap

        return multihost_utils.process_allgather(array, tiled=True)
    return array


def compare(values: Mapping[str, Any]) -> None:
    """Makes sure that all processes were given the same.

    Args:
      values: nested dicts and lists of what JSON can hold; long ones better as a hash.

    Raises:
      HostsError: on all processes the same: who differs from process 0, where, and both values.
    """
    first, *others = (dict(row) for row in gather("compared values", list(_leaves(values, ""))))
    different = [
        f"{key} is {_short(row.get(key))} on {who(i)}, but {_short(first.get(key))} on {who(0)}"
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


def told_of(error: BaseException) -> str:
    """Returns what other processes say of this one's error."""
    if isinstance(error, HostsError):  # names its process already
        return str(error)
    kind = "" if isinstance(error, EffnetError | OSError) else f"{type(error).__name__}: "
    return f"{who(index())}: {kind}{error}"
