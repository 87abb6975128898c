"""Who fills the rows of batches: threads of this process, or worker processes which a thread each waits for.

A worker is a process of its own that imports what `examples` needs and nothing more. It writes its rows where the batch
lies, in memory that both share, so that nothing is copied on the way.
"""

import concurrent.futures
import contextlib
import dataclasses
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from effnet_jax.data.examples import Arrays, Fields
from effnet_jax.data.sources.base import EncodedSource
from effnet_jax.data.squares import Squares
from effnet_jax.errors import DataError

_LARGEST_CHUNK = 64  # examples
_CHUNKS_A_THREAD = 4  # of a batch, so that threads end at about the same time
_ALIGNED = 64  # bytes


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Filler(Protocol):
    """What rows are filled with. It can be pickled, and what it needs is quick to import."""

    @property
    def fields(self) -> Fields:
        """The shape and type of a row's arrays, by name."""
        ...

    def fill(self, rows: Any, /, out: Arrays, squares: Any = None) -> list[Any]:
        """Fills as many rows as `out` has, each with what `rows` says of it. Returns what was skipped.

        Raises:
          DataError: an image that cannot be decoded and may not be skipped.
        """
        ...


@dataclasses.dataclass
class Rows:
    """Rows of a batch that are being filled.

    Attributes:
      arrays: by field, [B, …].
      chunks: one for each part of them: what it skipped, when it is done.
    """

    arrays: dict[str, np.ndarray]
    chunks: list[concurrent.futures.Future[list[Any]]]

    def wait(self) -> list[Any]:
        """Returns what was skipped once all rows are there. Raises what filling them raised, the first row's first."""
        return [entry for chunk in self.chunks for entry in chunk.result()]


class Decoders:
    """Fills batches of examples, in chunks, in the order that they are asked for. To be closed."""

    def __init__(self, examples: Filler, *, workers: int = 0, squares: Squares | None = None) -> None:
        """Starts threads, each with a worker of its own where there are any.

        Args:
          examples: what rows are filled with.
          workers: processes; 0: threads of this process, one for each core.
          squares: kept ones; with them there are no workers.
        """
        self._examples, self._squares = examples, squares
        self._count = workers or cores()
        self._workers: list[Worker] = []
        self._local = threading.local()
        self._blocks = Blocks(shared=workers > 0)
        self._payload = payload(examples) if workers else b""
        self._pool = concurrent.futures.ThreadPoolExecutor(self._count, "decoder")

    def _worker(self) -> "Worker":
        """The worker of this thread."""
        if not hasattr(self._local, "worker"):
            self._local.worker = Worker(self._payload, self._count)
            self._workers.append(self._local.worker)
        return self._local.worker

    def fill(self, rows: Sequence[Any] | np.ndarray) -> Rows:
        """Begins to fill the rows of a batch.

        Args:
          rows: for each what `examples` fills it by: of a source the position, -1 for padding.
        """
        count, fields = len(rows), self._examples.fields
        size = min(max(1, -(-count // (_CHUNKS_A_THREAD * self._count))), _LARGEST_CHUNK)
        memory, path = self._blocks.lend(layout_bytes(fields, count))
        arrays = laid_out(memory, fields, count)
        spans = [(start, min(start + size, count)) for start in range(0, count, size)]
        chunks = [self._pool.submit(self._fill, rows[a:b], arrays, a, b, count, path) for a, b in spans]
        return Rows(arrays, chunks)

    def _fill(self, rows: Any, arrays: Arrays, start: int, stop: int, count: int, path: str) -> list[Any]:
        if path:
            return self._worker().fill((path, count, start, rows))
        return self._examples.fill(rows, {k: v[start:stop] for k, v in arrays.items()}, self._squares)

    def close(self) -> None:
        """Ends threads and workers; what they are at is not waited for."""
        for worker in self._workers:
            worker.end()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:  # one that came up meanwhile
            worker.end()
        self._blocks.close()


def payload(examples: Filler) -> bytes:
    """Examples as a worker gets them: without the labels of all, since its records have them."""
    source = getattr(examples, "source", None)
    if isinstance(source, EncodedSource) and dataclasses.is_dataclass(examples) and not isinstance(examples, type):
        examples = dataclasses.replace(examples, source=dataclasses.replace(source, labels=None))
    return pickle.dumps(examples, pickle.HIGHEST_PROTOCOL)


class Worker:
    """A process that fills rows. Its thread talks to it, and `end` may come from another."""

    def __init__(self, payload: bytes, count: int) -> None:
        """Starts it.

        Args:
          payload: the pickled examples.
          count: how many workers there are, for messages.
        """
        self._count = count
        command = (
            "import pickle, sys; sys.path = pickle.load(sys.stdin.buffer); "
            "from effnet_jax.data.decoders import serve; serve()"
        )
        # In a session of its own, so that the terminal's Ctrl-C and a group's SIGTERM are the run's to follow: it asks
        # for images until it has saved. The worker ends when its pipe does, whatever became of the run.
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise DataError(
                f"no process to decode images could be started ({error}): set data.workers=0 (--workers=0 of predict)"
            ) from None
        with contextlib.suppress(OSError):  # whoever asks it for rows is told
            self._send(pickle.dumps(sys.path) + payload)

    def _send(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def fill(self, request: tuple[Any, ...]) -> list[Any]:
        """Has it fill rows, and waits.

        Raises:
          DataError: an image that cannot be decoded; or the process is gone.
        """
        assert self._process.stdout
        try:
            self._send(pickle.dumps(request))
            bad, error = pickle.load(self._process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            raise DataError(self._gone()) from None
        if error:
            raise DataError(error)
        return bad

    def _gone(self) -> str:
        status = self._process.wait()
        how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"
        why = (
            ": most likely the machine ran out of memory" if status == -signal.SIGKILL else ": its own words are above"
        )
        return (
            f"a process that decodes images {how}{why}. Set data.workers lower (--workers of predict; it is "
            f"{self._count}), or to 0, which decodes in threads and takes less memory"
        )

    def end(self) -> None:
        """Ends it, also where it is at something."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        self._process.wait()


def serve() -> None:
    """What a worker does: fills rows as it is asked to, until its pipes are closed."""
    answers = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # what a library prints is no answer
    requests = _requests()
    examples: Any = next(requests, None)
    blocks: dict[str, mmap.mmap] = {}  # few: they come again and again
    for path, count, start, rows in requests:
        bad, error = list[Any](), ""
        try:
            if path not in blocks:
                with open(path, "r+b") as file:
                    blocks[path] = mmap.mmap(file.fileno(), 0)
            arrays = laid_out(blocks[path], examples.fields, count)
            bad = examples.fill(rows, {k: v[start : start + len(rows)] for k, v in arrays.items()})
        except (DataError, OSError) as problem:
            error = str(problem)
        try:
            answers.write(pickle.dumps((bad, error)))
        except BrokenPipeError:  # nobody is left who waits for them
            return


def _requests() -> Iterator[Any]:
    """The examples and then what is asked for, until the process that asks has ended, be it in the middle of one."""
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            yield pickle.load(sys.stdin.buffer)


class Blocks:
    """Memory for batches, taken once: a block serves again when no array looks at it any more.

    A new block's pages have to be made by the kernel, one fault for each, which is a fifth of the time of decoding.
    """

    def __init__(self, shared: bool) -> None:
        """Begins with none.

        Args:
          shared: whether other processes fill them.
        """
        self._shared = shared
        self._free: list[_Block] = []
        self._closed = False

    def lend(self, size: int) -> tuple[np.ndarray, str]:
        """Gives memory, uint8 [size], and the path that other processes open it by, "" where they do not.

        It comes back by itself with the last array over it, those on a device without memory of its own included.
        """
        block = next((block for block in self._free if len(block.memory) == size), None)
        if block:
            self._free.remove(block)
        else:
            block = _Block(size, self._shared)
        memory = np.frombuffer(block.memory, np.uint8)  # what all arrays over the block have as their base
        weakref.finalize(memory, self._give_back, block).atexit = False
        return memory, block.path

    def _give_back(self, block: "_Block") -> None:
        if self._closed:
            block.close()
        else:
            self._free.append(block)

    def close(self) -> None:
        """Gives up what is free, and the rest as it comes back."""
        self._closed = True
        while self._free:
            self._free.pop().close()


class _Block:
    """Memory of this process, or memory that it shares with its workers."""

    def __init__(self, size: int, shared: bool) -> None:
        self.path, self._file = "", -1
        if not shared:
            self.memory = mmap.mmap(-1, size)
            return
        if hasattr(os, "memfd_create"):  # anonymous memory, which no bound of /dev/shm holds for
            self._file = os.memfd_create("effnet_jax", os.MFD_CLOEXEC)
            self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            self._file, self.path = tempfile.mkstemp(prefix="effnet_jax")
        os.ftruncate(self._file, size)
        self.memory = mmap.mmap(self._file, size)

    def close(self) -> None:
        """Lets workers have it no longer; the memory goes with the last array over it."""
        if self._file >= 0:
            os.close(self._file)
            if not self.path.startswith("/proc/"):
                os.unlink(self.path)
        self._file = -1


def layout_bytes(fields: Fields, count: int) -> int:
    """The bytes that the arrays of a batch of `count` rows take."""
    return max(sum(_aligned(_bytes(shape, dtype, count)) for shape, dtype in fields.values()), mmap.PAGESIZE)


def laid_out(memory: Any, fields: Fields, count: int) -> dict[str, np.ndarray]:
    """The arrays of a batch of `count` rows, one after the other in memory."""
    arrays, offset = {}, 0
    for name, (shape, dtype) in fields.items():
        arrays[name] = np.ndarray((count, *shape), dtype, memory, offset)
        offset += _aligned(_bytes(shape, dtype, count))
    return arrays


def _bytes(shape: tuple[int, ...], dtype: Any, count: int) -> int:
    return count * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
