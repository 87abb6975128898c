"""Checkpoints of a run: the state in orbax form, how far the run is, and a checksum of every leaf.

Orbax writes a checkpoint whole or not at all, but restores a flipped bit without a word: so each leaf's checksum is
kept beside it and compared at a restore. A damaged checkpoint is told, and the one before it is taken.
"""

import dataclasses
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from effnet_jax.disk import check_space
from effnet_jax.errors import RunError
from effnet_jax.train.state import TrainState


@dataclasses.dataclass
class Progress:
    """How far a run is: all that a resume needs besides the state, as plain numbers.

    Attributes:
      phase: number of the current phase.
      sums: of `loss` and `accuracy` over the `steps` of the current epoch so far.
      validation: results at the end of the last epoch, by split.
      results: of the finished phases, as `summary.json` has them.
    """

    phase: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    validation: dict[str, Any] = dataclasses.field(default_factory=dict)
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run dir: the newest `keep`, and the one with the best validation accuracy."""

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every step of every save
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: Progress, accuracy: float | None = None) -> None:
        """Saves a state under its step count; the writing goes on beside the training.

        Raises:
          DiskError: the disk is full.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        check_space(self._manager.directory, state_bytes(state), "a checkpoint")
        state = jax.tree.map(_to_host, state)
        record = {"progress": dataclasses.asdict(progress), "checksums": leaf_checksums(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)),
            metrics=None if accuracy is None else {"accuracy": accuracy},
        )

    def restore(
        self, abstract: Callable[[Progress], TrainState], tell: Callable[[str], None]
    ) -> tuple[TrainState, Progress] | None:
        """Restores the newest checkpoint that is whole.

        Args:
          abstract: from the progress to the shapes and shardings of the state at that point.
          tell: shows a message, where a checkpoint is damaged.

        Returns:
          The state and the progress; None where there is no checkpoint.

        Raises:
          RunError: there are checkpoints, and all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                restored = self._restore_step(step, abstract)
            except MemoryError:  # says nothing about the checkpoint
                raise
            except Exception as error:  # orbax, tensorstore, JSON and the checksums each raise their own
                tell(f"checkpoint {step} is damaged and is passed over: {_one_line(error)}")
                damaged.append(step)
                continue
            self._set_aside(damaged)
            return restored
        if steps:
            raise RunError(
                f"all {len(steps)} checkpoints in {self._manager.directory} are damaged (see above): "
                "start anew with another --workdir"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints out of the way of the steps that are written again, without deleting anything."""
        folder = Path(self._manager.directory)
        aside = folder.with_name(f"{folder.name}.damaged")
        for step in steps if jax.process_index() == 0 else ():
            aside.mkdir(exist_ok=True)
            target = aside / str(step)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(folder / str(step), target)
        if steps:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
            self._manager.reload()

    def _restore_step(self, step: int, abstract: Callable[[Progress], TrainState]) -> tuple[TrainState, Progress]:
        record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        progress = Progress(**record["progress"])
        target = abstract(progress)
        state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        found = leaf_checksums(state)
        wrong = [path for path, checksum in record["checksums"].items() if found.get(path) != checksum]
        if wrong or len(found) != len(record["checksums"]):
            raise RunError(f"the checksum of {wrong[0] if wrong else 'a leaf'} is wrong")
        return state, progress

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def state_bytes(tree: Any) -> int:
    """Returns the bytes of all leaves, arrays or their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def leaf_checksums(tree: Any) -> dict[str, int]:
    """Returns the CRC-32 of each leaf's bytes, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).tobytes())
        for path, leaf in leaves
    }


def _to_host(leaf: jax.Array) -> jax.Array | np.ndarray:
    # A copy of what every device holds: the training goes on and gives the buffer away. Orbax would cut a replicated
    # array into a slice for each device, and compile each cut.
    return np.array(leaf) if leaf.is_fully_replicated else leaf


def _accuracy(metrics: Any) -> float:
    return float(metrics["accuracy"])


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] + ("…" if len(text) > 200 else "")
