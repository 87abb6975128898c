"""The lock of a run dir, on a disk or in a bucket: one process writes to it, and says who it is."""

import contextlib
import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from effnet_jax.errors import RunError
from effnet_jax.files import AnyPath, as_path, bucket_errors, is_local, make_folder

_LOCK = ".lock"
_BEAT, _STALE, _POLL = 30.0, 120.0, 5.0  # seconds between signs of life, until silence is death, between two looks


class Claim:
    """A run dir that belongs to this process.

    Attributes:
      lost: what took it away since; empty as long as nothing did. In a bucket, a process that slept for minutes counts
        as dead, and another may have gone on in its place.
    """

    def __init__(self) -> None:
        self.lost = ""

    def check(self) -> None:
        """Raises RunError where the run dir is another's by now: what both write would mix."""
        if self.lost:
            raise RunError(self.lost)


@contextlib.contextmanager
def lock(folder: AnyPath, *, tell: Callable[[str], None] = print, patience: float = 150.0) -> Iterator[Claim]:
    """Claims a run dir for this process; it is made if it is not there.

    A disk's lock ends with the process, however that ends. One in a bucket shows signs of life. When they end it is
    taken over: at once if its process was on this machine, else after two minutes.

    Args:
      folder: the run dir.
      tell: shows a line.
      patience: seconds to wait for a sign of life of another machine's process.

    Yields:
      The claim.

    Raises:
      RunError: another living process has it.
    """
    make_folder(folder)
    place = as_path(folder)
    with _disk_lock(place, tell) if is_local(place) else _bucket_lock(place, tell, patience) as claim:
        yield claim


def _describe_me() -> dict[str, Any]:
    machine = [socket.gethostname()]  # containers may share a name, and count processes each for itself
    with contextlib.suppress(OSError):
        machine += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "command": shlex.join(sys.argv)[:500],
        "machine": " ".join(machine),
        "token": uuid.uuid4().hex,
    }


def _parse_holder(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        if isinstance(holder := json.loads(content), dict):
            return holder
    return {}


def _in_use(folder: epath.Path, holder: Mapping[str, Any]) -> RunError:
    who = "another process"
    if {"host", "pid", "since", "command"} <= holder.keys():
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"
    return RunError(f"{folder} is in use by {who}: wait for it, stop it, or use another folder")


_files_held: set[int] = set()


def _leave_to_parent() -> None:
    while _files_held:
        os.close(_files_held.pop())


# A forked child, such as a decoding worker, would hold the lock for a parent that was killed.
os.register_at_fork(after_in_child=_leave_to_parent)


@contextlib.contextmanager
def _disk_lock(folder: epath.Path, tell: Callable[[str], None]) -> Iterator[Claim]:
    path = folder / _LOCK
    file = _take_file(path, tell)
    try:
        yield Claim()
    finally:
        if file in _files_held:  # not in a forked child
            _files_held.remove(file)
            if _is_file_at(file, path):
                os.unlink(path)
            os.close(file)


def _take_file(path: epath.Path, tell: Callable[[str], None]) -> int:
    import fcntl

    for last in (False, False, False, False, True):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError | PermissionError):
                holder = _parse_holder(os.read(file, 2**16))
                os.close(file)
                raise _in_use(path.parent, holder) from None
            tell(f"warning: {path.parent} cannot be locked ({error.strerror}): take care not to start it twice")
        if last or _is_file_at(file, path):
            break
        os.close(file)  # its holder was just removing it
    _files_held.add(file)
    with contextlib.suppress(OSError):  # such as a full disk
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_describe_me()).encode(), 0)
    return file


def _is_file_at(file: int, path: epath.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


@contextlib.contextmanager
def _bucket_lock(folder: epath.Path, tell: Callable[[str], None], patience: float) -> Iterator[Claim]:
    claim = _BucketClaim(folder)
    with bucket_errors(folder):
        claim.take(tell, patience)
    thread = threading.Thread(target=claim.beat, name="lock", daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        if claim.me["pid"] == os.getpid():  # not in a forked child
            claim.stop.set()
            thread.join(timeout=_BEAT)
            claim.release()


class _BucketClaim(Claim):
    """The lock of a bucket's folder: an object that its holder writes again and again, as a sign of life.

    Each write is bound to the generation that the writer saw last, so that of two that try, one fails.
    """

    def __init__(self, folder: epath.Path) -> None:
        super().__init__()
        self.folder = folder
        self.me = _describe_me()
        self.stop = threading.Event()
        self._generation = b""
        self._store: Any = None

    def take(self, tell: Callable[[str], None], patience: float) -> None:
        import tensorstore  # comes with orbax; gcsfs has no such writes

        bucket, _, path = f"{self.folder / _LOCK}".removeprefix("gs://").partition("/")
        retries = {"gcs_request_retries": {"max_retries": 6}}  # a minute; it would try for a quarter of an hour
        spec = {"driver": "gcs", "bucket": bucket, "path": path, "context": retries}
        self._store = tensorstore.KvStore.open(spec).result()
        deadline = time.monotonic() + patience
        seen = None
        while True:
            found = self._store.read("").result()
            generation = found.stamp.generation
            holder = _parse_holder(found.value)
            if found.state == "value" and not (reason := self._reason_to_take(holder)):
                here = holder["machine"] == self.me["machine"]
                if here or seen not in (None, generation) or time.monotonic() > deadline:
                    raise _in_use(self.folder, holder)
                if seen is None:
                    tell(f"{_in_use(self.folder, holder)} (waiting for a sign of its life …)")
                seen = generation
                time.sleep(_POLL)
                continue
            if found.state == "value":
                tell(f"warning: {self.folder} is taken over from a run that did not end: {reason}")
            if self._write(generation):
                return

    def beat(self) -> None:
        while not self.stop.wait(_BEAT):
            with contextlib.suppress(Exception):  # the network is down: the next beat may come through
                if not self._write(self._generation):
                    self.lost = str(_in_use(self.folder, _parse_holder(self._store.read("").result().value)))
                    return

    def release(self) -> None:
        with contextlib.suppress(Exception):  # it ages by itself
            self._store.write("", None, if_equal=self._generation).result()

    def _write(self, generation: bytes) -> bool:
        content = json.dumps(self.me | {"beat": time.time()}).encode()
        written = self._store.write("", content, if_equal=generation).result().generation
        if not written:
            found = self._store.read("").result()
            if _parse_holder(found.value).get("token") == self.me["token"]:
                written = found.stamp.generation  # it was written, and the answer got lost on the way
        self._generation = written or self._generation
        return bool(written)

    def _reason_to_take(self, holder: Mapping[str, Any]) -> str:
        try:
            here, pid = holder["machine"] == self.me["machine"], int(holder["pid"])
            silent = time.time() - float(holder["beat"])
        except (KeyError, TypeError, ValueError):
            return "its lock cannot be read"
        if here and not _lives(pid):
            return f"process {pid} on this machine is gone"
        return f"process {pid} on {holder.get('host')} is silent for {silent:.0f} s" if silent > _STALE else ""


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
