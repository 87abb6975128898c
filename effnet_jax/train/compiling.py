"""Compiling: where compiled programs are kept for the next start, and what a first step had to wait for."""

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from effnet_jax import files, hosts
from effnet_jax.cache import cache_folder
from effnet_jax.errors import EffnetError, PathError
from effnet_jax.train.meter import duration

LIMIT = 4 * 2**30  # bytes of the default folder
_SECONDS_TO_SEE = 10.0


def keep_programs(place: str) -> str:
    """Has JAX keep compiled programs for the next start. All processes call it, before anything is compiled.

    What is set already by JAX's own means, such as `JAX_COMPILATION_CACHE_DIR`, stays.

    JAX lets only the first of several processes write. On GPUs they compile together, and one that found its programs
    would leave the others waiting for its part; so several processes need a folder that all of them see, and have none
    by default. On some of Intel's CPUs XLA says of each program that it loads that the machine lacks prefer-no-gather:
    that is a taste of the compiler's and no instruction, and the program runs.

    Args:
      place: `config.compile_cache`: a folder, local or in a bucket; "": one of the user's for all runs; "off": none.

    Returns:
      What the user should know. A folder that cannot be used is no reason to end a run.
    """
    if place == "off" or getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return ""
    if not place and hosts.count() > 1:
        return "compiled programs are not kept: compile_cache can name a folder that all processes see, such as gs://…"
    default, place = not place, place or default_folder()
    if trouble := _trouble(place):
        return f"warning: compiled programs are not kept: {trouble}"
    folder = files.absolute(place)
    if default:
        trim(Path(folder), LIMIT)
    if not files.is_local(folder) and "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES" not in os.environ:
        # XLA's own files, of GPUs: it would put them beside, and end where that is no disk.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    return f"compiled programs are kept in {folder}"


def keep_for_next_time() -> None:
    """Has a command that no config belongs to keep its programs in the user's folder, and says what fails."""
    if (warning := keep_programs("")).startswith("warning") and hosts.is_first():
        print(warning, file=sys.stderr)


def default_folder() -> str:
    """Returns the folder for the compiled programs of all of a user's runs."""
    return os.fspath(cache_folder("xla"))


def _trouble(place: str) -> str:
    """Says, on all processes alike, why a folder cannot be used: what the first one writes there, all have to see."""
    token = hosts.gather("a token", uuid.uuid4().hex)[0]
    name = f".probe-{token}"

    def write() -> None:
        if hosts.is_first():
            files.make_folder(place)
            files.write_json(files.as_path(place) / name, token)

    def see() -> None:
        until = time.monotonic() + _SECONDS_TO_SEE
        while files.read_json(files.as_path(place) / name) != token:
            if time.monotonic() > until:
                raise PathError(f"{place} is not the same folder here as on process 0")
            time.sleep(0.2)  # a network disk may show it late

    try:
        return _failure(write) or _failure(see)
    finally:
        with contextlib.suppress(EffnetError, OSError):
            if hosts.is_first():
                files.remove(files.as_path(place) / name)


def _failure(action: Callable[[], None]) -> str:
    """Does something on all processes. Returns, to all alike, what failed on one of them; "" where all went well."""
    error = ""
    try:
        action()
    except (EffnetError, OSError, ValueError) as failure:
        error = str(failure)
    errors = hosts.gather("the folder of compiled programs", error)
    found = [(index, error) for index, error in enumerate(errors) if error]
    if not found:
        return ""
    index, error = found[0]
    return error if len(errors) == 1 else f"{hosts.who(index)}: {error}"


def trim(folder: Path, limit: int) -> None:
    """Deletes the programs that were not used for longest, until the others have no more than `limit` bytes.

    JAX can do so by itself, with one more package and under a lock at each look, for which a process waits.
    """
    programs = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another run deletes too
            about = path.stat()
            programs.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    room = limit
    for _, size, path in sorted(programs, reverse=True):
        room -= size
        if room < 0:
            with contextlib.suppress(OSError):
                files.remove(path)


class CompileClock(contextlib.AbstractContextManager):
    """Seconds since it was started, and how many of them went into tracing, lowering and compiling."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._compiling = 0.0

    def __enter__(self) -> "CompileClock":
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *error: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith("/jax/core/compile/"):  # a program that was kept counts with what loading it took
            self._compiling += duration_secs

    def read(self) -> dict[str, float]:
        """Returns `seconds` and `compiling` so far."""
        return {"seconds": round(time.monotonic() - self._began, 2), "compiling": round(self._compiling, 2)}


def first_step_words(first_step: dict[str, float]) -> str:
    """Says what came before the end of the first step."""
    return f"first step after {duration(first_step['seconds'])}, {duration(first_step['compiling'])} of them compiling"
