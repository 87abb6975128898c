"""Builds the CPU's kernels once for a machine, with its own compiler, and registers them with XLA.

Nothing needs them: where there is no compiler, `available` is False, and models use the forms that XLA compiles.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib

from effnet_jax.cache import cache_folder, one_at_a_time
from effnet_jax.files import write_bytes

_SOURCES = Path(__file__).with_name("cpp")
_HANDLERS = (
    "block_forward",
    "block_backward",
    "first_forward",
    "first_backward",
    "second_forward",
    "second_backward",
)
# Names that XLA's programs call them by, in its compilation cache too: they change with what the kernels do.
_VERSION = "1"
TARGETS = {name: f"effnet_jax_{name}_{_VERSION}" for name in _HANDLERS}

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
_SECONDS = 300


def available() -> bool:
    """Whether the kernels can be used here. Builds them if they are not there yet, which takes some seconds.

    Set `EFFNET_JAX_KERNELS=0` to do without them.
    """
    return os.environ.get("EFFNET_JAX_KERNELS", "1") != "0" and _registered()


@functools.cache
def _registered() -> bool:
    try:
        library = ctypes.cdll.LoadLibrary(os.fspath(_built()))
    except (_Unbuildable, OSError) as error:  # OSError: a library that does not load here
        logging.getLogger(__name__).info("this CPU computes more slowly, by XLA's forms alone: %s", error)
        return False
    for name in _HANDLERS:
        handler = getattr(library, f"effnet_{name}")
        jax.ffi.register_ffi_target(TARGETS[name], jax.ffi.pycapsule(handler), platform="cpu")
    return True


class _Unbuildable(Exception):
    """Why there is no library."""


def _built() -> Path:
    """Returns the library of this machine, compiler and source, which is compiled if it is not there.

    Raises:
      _Unbuildable: no compiler, or it could not; the next process does not try again.
    """
    compiler = next((found for name in _compilers() if (found := shutil.which(name))), None)
    if compiler is None:
        raise _Unbuildable("no C++ compiler was found (c++, g++, clang++, or CXX)")
    sources = sorted(_SOURCES.iterdir())
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256("\0".join((told, jaxlib.__version__, _processor(), *_FLAGS)).encode())
    for source in sources:
        key.update(source.read_bytes())
    library = cache_folder("kernels", f"{key.hexdigest()[:24]}.so")
    failure = library.with_suffix(".failed")
    try:
        with one_at_a_time(library):
            if not library.exists() and not failure.exists():
                print("building the CPU's kernels, once for this machine (some 20 s)", file=sys.stderr, flush=True)
                _compile(compiler, library, failure)
    except OSError as error:
        raise _Unbuildable(f"{library.parent} cannot be written ({error})") from error
    if not library.exists():
        raise _Unbuildable(f"{compiler} could not build the kernels: {failure}")
    return library


def _compilers() -> tuple[str, ...]:
    return (*filter(None, [os.environ.get("CXX")]), "c++", "g++", "clang++")


def _compile(compiler: str, library: Path, failure: Path) -> None:
    unfinished = library.with_suffix(f".{os.getpid()}.so")
    command = [compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", os.fspath(_SOURCES / "blocks.cc"), "-o"]
    try:
        done = subprocess.run(
            [*command, os.fspath(unfinished)], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        told = done.stderr
        if done.returncode == 0:
            os.replace(unfinished, library)
            return
    except subprocess.TimeoutExpired:
        told = f"took more than {_SECONDS} s"
    finally:
        unfinished.unlink(missing_ok=True)
    logging.getLogger(__name__).warning(
        "the CPU's kernels could not be built, and it computes more slowly: %s", failure
    )
    write_bytes(failure, told.encode())


def _processor() -> str:
    """What `-march=native` means here: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join(sorted(kinds))
