"""What a checkpoint holds, how it is read back, and what is damage and what is trouble.

Damage are bytes that are not those that were written. What says nothing about them (memory, a disk that cannot be read,
a state of another version) is trouble, and no reason to pass a checkpoint over.
"""

import dataclasses
import errno
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from effnet_jax import files, hosts
from effnet_jax.errors import PathError, RunError
from effnet_jax.train.rundir.progress import Progress, is_sealed, sealed
from effnet_jax.train.step.state import TrainState
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import alone, array_handler

FORMAT = 2  # 1: records without a format; paths of leaves as `jax.tree_util.keystr` has them
STATE, RECORD = "state", "record"

# What says nothing about a checkpoint's bytes, in the words of jaxlib and tensorstore; and the packages whose errors
# are those of a network.
_TROUBLE = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|cannot allocate|UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED"
    r"|ABORTED|CANCELLED",
    re.IGNORECASE,
)
_NETWORK = ("google", "gcsfs", "aiohttp", "requests", "urllib3")
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")

Leaves = dict[str, np.ndarray]  # by path, its parts joined with slashes


class Damage(Exception):
    """A checkpoint whose bytes are not those that were written."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
      state: of the run, on the devices or as NumPy arrays.
      progress: how far the run is.
      metadata: of the weights in it, as a weights dir would have them.
    """

    state: TrainState
    progress: Progress
    metadata: Metadata


class NotFinite(Exception):
    """A value that is no number, in a state that was to be saved."""


def is_spread(snapshot: Snapshot) -> bool:
    """Whether other processes hold pieces of the state that this one does not have."""
    return any(not hosts.is_readable(leaf) for leaf in jax.tree.leaves(snapshot.state))


def gathered(snapshot: Snapshot) -> Snapshot:
    """Brings what other processes hold of a sharded state into this one's memory; all call it, in the same order."""
    return dataclasses.replace(snapshot, state=jax.tree.map(hosts.readable, snapshot.state))


def copied(snapshot: Snapshot) -> tuple[int, Leaves, dict[str, Any]]:
    """Copies a snapshot into the host's memory, since the training gives its buffers away.

    Returns:
      Its step, the leaves by path, and what the record says besides their checksums.

    Raises:
      NotFinite: a parameter, a statistic or an average is not finite.
    """
    step = int(snapshot.state.step)
    leaves = {path: np.array(leaf) for path, leaf in flat_leaves(snapshot.state).items()}
    for path, leaf in leaves.items():
        # Not the optimizer's: a plateau's lowest loss is infinite at first, and moments follow the gradients.
        if path.startswith(("params/", "batch_stats/", "ema/")) and not np.isfinite(leaf).all():
            raise NotFinite(f"{path} is not finite after step {step}")
    record = {
        "format": FORMAT,
        "progress": dataclasses.asdict(snapshot.progress),
        "metadata": dataclasses.asdict(snapshot.metadata),
    }
    return step, leaves, json.loads(json.dumps(record))  # as it will be read


def read_checkpoint(folder: epath.Path) -> tuple[dict[str, Any], Leaves]:
    """Reads one checkpoint, without a device and without knowing the shape of its state.

    Args:
      folder: of its step.

    Returns:
      Its record (`progress`, `checksums`), and the leaves by path.

    Raises:
      Damage: its bytes are not those that were written.
      OSError, MemoryError: what says nothing about them.
    """
    _check_files(folder)
    try:
        record = files.read_json(folder / RECORD / "metadata")
        restored = _read_arrays(files.absolute(folder / STATE))
    except Exception as error:  # orbax, tensorstore and JSON each raise their own
        if is_trouble(error):
            raise
        raise Damage(one_line(error)) from error
    if not isinstance(record, dict) or not isinstance(record.get("checksums"), dict):
        raise Damage("its record is missing or is none")
    leaves = {path: np.asarray(leaf) for path, leaf in flat_leaves(restored).items()}
    expected: Mapping[str, str | int] = record["checksums"]
    found: Mapping[str, str | int] = checksums(leaves)
    if "format" not in record:  # the first format
        expected, found = _by_flat_path(record["checksums"]), plain_checksums(leaves)
    elif not is_sealed(record):
        raise Damage("the checksum of its record is wrong")
    wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    if wrong:
        raise Damage(f"the checksum of {wrong[0]} is wrong")
    return record, leaves


def seal_files(folder: epath.Path) -> None:
    """Writes down the checksums of a checkpoint's files beside it, once it is whole, and forgets those of deleted ones.

    What is read of them is checked by itself; with this, a flipped bit of anything else is noticed too. A bucket keeps
    checksums of its own.
    """
    if not files.is_local(folder):
        return
    seals = _seals(folder)
    files.make_folder(seals)
    for name in files.visible(seals):
        if not (folder.parent / name.removesuffix(".json")).exists():
            files.remove(seals / name)
    files.write_json(seals / f"{folder.name}.json", sealed({"files": files.checksums(folder)}))


def _check_files(folder: epath.Path) -> None:
    """Raises Damage where a file is not what `seal_files` saw, if it came to that."""
    try:
        known = files.read_json(_seals(folder) / f"{folder.name}.json") if files.is_local(folder) else None
    except ValueError:  # says nothing about the checkpoint
        return
    if known is None or not is_sealed(known) or not folder.exists():
        return
    found = files.checksums(folder)
    for name, checksum in known["files"].items():
        if found.get(name) != checksum:
            raise Damage(f"{name} is {'changed' if name in found else 'missing'}")


def _seals(folder: epath.Path) -> epath.Path:
    return folder.parent.with_name(f"{folder.parent.name}.files")


def _read_arrays(folder: epath.Path) -> Any:
    with ocp.Checkpointer(array_handler(), multiprocessing_options=alone()) as checkpointer:
        return checkpointer.restore(folder)


def flat_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path, such as `params/stem/conv/kernel` or `opt_state/…/0/trace/…`.

    The path is the same for a state and for what orbax restores of it, which has dicts and lists for all nodes.
    """
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(_key(part)) for part in path): leaf for path, leaf in paths}


def _key(part: Any) -> Any:
    return next(getattr(part, name) for name in ("key", "name", "idx") if hasattr(part, name))


def checksums(leaves: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns shape, type and CRC-32 of each leaf."""
    plain = plain_checksums(leaves)
    return {path: f"{leaf.dtype}{list(leaf.shape)} {plain[path]:08x}" for path, leaf in leaves.items()}


def plain_checksums(leaves: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns the CRC-32 of each leaf's bytes."""
    return {
        path: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data) for path, leaf in leaves.items()
    }


def _by_flat_path(checksums: Mapping[str, int]) -> dict[str, int]:
    """Brings paths such as `.opt_state.inner_states['trained'][0].trace` into the form of `flat_leaves`."""
    parts = re.compile(r"\.(\w+)|\['([^']*)'\]|\[(\d+)\]")
    return {"/".join(filter(None, sum(parts.findall(path), ()))): value for path, value in checksums.items()}


def matched(leaves: Mapping[str, np.ndarray], shapes: TrainState, where: str) -> TrainState:
    """Puts leaves into the structure of a state. Raises RunError where they are others."""
    wanted = flat_leaves(shapes)
    odd = [f"{path} is not in this version's state" for path in leaves if path not in wanted]
    odd += [f"{path} is missing" for path in wanted if path not in leaves]
    for path in wanted.keys() & leaves.keys():
        if leaves[path].shape != wanted[path].shape or leaves[path].dtype != wanted[path].dtype:
            was, now = leaves[path], wanted[path]
            odd.append(f"{path} is {was.dtype}{list(was.shape)} there and {now.dtype}{list(now.shape)} here")
    if odd:
        listed = "; ".join(sorted(odd)[:3])
        raise RunError(
            f"{where} is whole, but of another state than this run has: {listed}. It was written with other classes "
            "or by other versions of the packages (see attempts.jsonl): go on with those, or give another --workdir"
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), [leaves[path] for path in wanted])


def is_trouble(error: BaseException) -> bool:
    """Whether reading failed for a reason that says nothing about a checkpoint's bytes."""
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, MemoryError | PathError | TimeoutError | ConnectionError) or package in _NETWORK:
        return True
    code = error.errno if isinstance(error, OSError) else None
    if found := _OS_ERROR.search(str(error)):
        code = int(found[1])
    # A file that is not there, or is too short to be read or mapped, is damage.
    if code is not None:
        return code not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
    return bool(_TROUBLE.search(str(error)))


def one_line(error: Exception) -> str:
    """Returns the words of an error on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200] + ("…" if len(text) > 200 else "")
