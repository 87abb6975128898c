"""Checkpoints of a run: the state in orbax form, how far the run is, and a checksum of every leaf.

Orbax writes a checkpoint whole or not at all, but restores a flipped bit without a word: so checksums are kept beside
the arrays and compared at a restore. A damaged checkpoint is told, and the one before it is taken. Trouble that says
nothing about the checkpoint (memory, a disk that cannot be read, a state of another version) is no damage.

The first process writes; all read.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import LatestN, PreservationContext
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo as Info

from effnet_jax import files, hosts, locks
from effnet_jax.errors import DiskError, PathError, RunError
from effnet_jax.train.rundir.progress import (
    Progress,
    drop_progress,
    make_progress,
    read_progress,
    sealed,
    write_progress,
)
from effnet_jax.train.rundir.snapshot import (
    RECORD,
    STATE,
    Damage,
    Leaves,
    NotFinite,
    Snapshot,
    checksums,
    copied,
    gathered,
    is_spread,
    matched,
    one_line,
    read_checkpoint,
    seal_files,
)
from effnet_jax.train.step.state import TrainState
from effnet_jax.trees import nest
from effnet_jax.weights.store import alone, array_handler

CHECKPOINTS = "checkpoints"


class Checkpoints:
    """The checkpoints of one run dir: the newest `keep`, and the one with the best validation accuracy."""

    def __init__(
        self,
        workdir: epath.Path,
        *,
        claim: locks.Claim | None = None,
        tell: Callable[[str], None] = print,
        keep: int = 2,
        minutes: float = 10.0,
        steps: int = 0,
    ) -> None:
        """Opens the checkpoints.

        Args:
          workdir: the run dir.
          claim: on the run dir, which is checked before each save.
          tell: shows a message.
          keep: how many of the newest stay.
          minutes: between two of them.
          steps: one at each multiple of so many steps besides; 0: none.
        """
        self.folder = workdir / CHECKPOINTS
        self.accuracies: Mapping[int, float] = {}  # validation accuracy by step, for the best; the log's
        self._workdir, self._claim, self._tell = workdir, claim or locks.Claim(), tell
        self._seconds, self._steps = 60 * minutes, steps
        self._saved_at = time.monotonic()
        self._latest: int | None = None  # that is whole, as far as this process knows
        self._writing: int | None = None  # that is being written, beside the training
        self._held: tuple[int, Leaves, dict[str, Any]] | None = None  # the best state, not saved yet
        self._closed = False
        self._preserved = _Preserved(keep, self)
        self._manager = _open_manager(self.folder, self._preserved) if hosts.is_first() else None

    def saved_steps(self) -> list[int]:
        """Returns the steps of all checkpoints, on the process that writes them; elsewhere none."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def last_good(self) -> str:
        """Says what a run that cannot go on can go back to; nothing on a process that does not know it."""
        if self._latest is not None:
            return f"the last good checkpoint is step {self._latest}"
        return "no checkpoint was saved yet" if self._manager else ""

    # ---- when

    def due(self, step: int) -> bool:
        """Whether it is time for a checkpoint, on the process that writes them.

        Raises:
          DiskError: the disk was full when the last one was written, beside the training.
        """
        if self._manager is None:
            return False
        if self._writing is not None and not self._manager.is_saving_in_progress():
            self._settle()
        waited = time.monotonic() - self._saved_at
        return bool(self._steps and step % self._steps == 0) or (self._seconds > 0 and waited >= self._seconds)

    def due_at_epoch(self, step: int) -> bool:
        """Whether an epoch's end is worth a checkpoint: not where epochs take seconds."""
        waited = time.monotonic() - self._saved_at
        return self.due(step) or (self._manager is not None and waited >= self._seconds / 10)

    # ---- saving

    def save(self, snapshot: Snapshot) -> None:
        """Saves a state under its step count; the writing goes on beside the training.

        Of a step that is saved already, only the progress is written.

        Raises:
          DiskError: the disk is full, or was when the one before was written.
          RunError: a value of the state is not finite.
        """
        step = int(snapshot.state.step)
        if self._for_all(snapshot, "the step is saved", functools.partial(self._is_saved, step)):
            if self._manager:
                write_progress(self._workdir, step, snapshot.progress)
            return
        snapshot = gathered(snapshot)
        if self._manager is None:
            return
        newest = self._copied(snapshot)
        self._write_held(before=step, room=2 * _bytes(newest[1]))
        self._write(*newest)

    def _is_saved(self, step: int) -> bool:
        self._settle()
        return self._manager is not None and step in self._manager.all_steps()

    def _for_all(self, snapshot: Snapshot, what: str, decide: Callable[[], bool]) -> bool:
        """What the writing process decides; where it needs the pieces that others hold, they are told."""
        return hosts.on_first(what, decide) if is_spread(snapshot) else decide()

    def is_unsaved_best(self, step: int) -> bool:
        """Whether a step is the best so far and has no checkpoint, on the process that writes them."""
        if self._manager is None:
            return False
        return step == best_step(list(self.accuracies), self.accuracies) and step not in self._manager.all_steps()

    def hold(self, snapshot: Snapshot) -> None:
        """Keeps a copy of the best state so far in the host's memory, to be written before the next checkpoint.

        So the best is there to be exported, and epochs of seconds do not write the model each time.
        """
        snapshot = gathered(snapshot)
        if self._manager is not None:
            self._held = self._copied(snapshot)

    def _copied(self, snapshot: Snapshot) -> tuple[int, Leaves, dict[str, Any]]:
        try:
            return copied(snapshot)
        except NotFinite as error:
            raise RunError(f"{error}, so it is not saved: {self.last_good()}") from None

    def _write_held(self, before: int, room: int) -> None:
        """Writes the best state, which is older; what goes wrong with it must not keep the newest one from the disk."""
        held, self._held = self._held, None
        if held is None or held[0] >= before:
            return
        try:
            files.check_space(self.folder, room, "the best checkpoint and the newest")
            self._write(*held)
            self._settle()
        except (DiskError, OSError, PathError) as error:
            self._tell(f"warning: the best state so far, of step {held[0]}, is not saved: {error}")

    def _write(self, step: int, leaves: Leaves, record: dict[str, Any]) -> None:
        assert self._manager is not None
        self._claim.check()
        files.check_space(self.folder, _bytes(leaves), "a checkpoint")
        record = sealed({**record, "checksums": checksums(leaves)})
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(nest(leaves)), record=ocp.args.JsonSave(record))
        self._writing = step
        with self._failure_told(step):
            self._manager.save(step, args=args)
            self._saved_at = time.monotonic()

    def _settle(self) -> None:
        """Waits until the last checkpoint is written, so that it counts; its errors come out here."""
        if self._manager is None or self._writing is None:
            return
        step = self._writing
        with self._failure_told(step):
            self._manager.wait_until_finished()
            seal_files(files.absolute(self.folder / str(step)))
            self._latest, self._writing = step, None

    @contextlib.contextmanager
    def _failure_told(self, step: int) -> Iterator[None]:
        """A full disk ends the run; a bucket that does not answer is tried again with the next checkpoint."""
        try:
            yield
        except Exception as error:  # of orbax, tensorstore, gcsfs, or of the threads that write
            self._reopen()
            self._saved_at = time.monotonic() - self._seconds  # due again
            if files.full_disk(error):
                raise DiskError(
                    f"no space left on the disk for checkpoint {step} in {self.folder}: free some, and start again"
                ) from error
            if files.is_local(self.folder):
                raise
            self._tell(f"warning: checkpoint {step} was not written and is tried again: {one_line(error)}")

    def _reopen(self) -> None:
        """Opens orbax's manager anew: one that failed to write raises the same error at every save after."""
        assert self._manager is not None
        self._writing = None
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager = _open_manager(self.folder, self._preserved)

    def close(self) -> None:
        """Waits until everything is written. Raises DiskError where it could not be."""
        if self._manager is not None and not self._closed:
            self._closed = True
            try:
                self._settle()
            finally:
                self._manager.close()

    # ---- restoring

    def restore(
        self, shapes: Callable[[Progress], TrainState], tell: Callable[[str], None]
    ) -> tuple[TrainState, Progress, Progress] | None:
        """Restores the newest checkpoint that is whole, the same one on every process.

        Args:
          shapes: from the progress to the shapes of the state at that point.
          tell: shows a message, where a checkpoint is damaged.

        Returns:
          The state as NumPy arrays, the progress that it was saved with, and the progress since then that took no
          step; None where there is no checkpoint.

        Raises:
          RunError: all checkpoints are damaged; or they hold another state than this run has.
          MemoryError, OSError: what says nothing about the checkpoint.
        """
        steps = hosts.on_first("checkpoints", self.saved_steps)
        damaged: list[int] = []
        for step in reversed(steps):
            reason, record, leaves = self._read_on_all(step, tell)
            if reason:
                damaged.append(step)
                continue
            self._set_aside(damaged)
            self._latest = step
            progress = make_progress(record["progress"])
            if self._manager:
                drop_progress(self._workdir, unless=step)  # of a checkpoint that is damaged: its figures come again
            with hosts.agree("the checkpoint fits the run"):
                state = matched(leaves, shapes(progress), f"checkpoint {step} of {self.folder}")
            since = hosts.on_first("progress", functools.partial(self._since, step))
            return state, progress, make_progress(since) if since else progress
        if steps:
            raise RunError(
                f"all {len(steps)} checkpoints in {self.folder} are damaged (see above): "
                "start anew with another --workdir"
            )
        return None

    def _since(self, step: int) -> dict[str, Any] | None:
        progress = read_progress(self._workdir, step)
        return dataclasses.asdict(progress) if progress else None

    def _read_on_all(self, step: int, tell: Callable[[str], None]) -> tuple[str, dict[str, Any], Leaves]:
        """Reads a checkpoint on every process. A process that finds it damaged finds so for all: it gives a reason."""
        reason = ""
        record: dict[str, Any] = {}
        leaves: Leaves = {}
        with hosts.agree(f"checkpoint {step} is read"):
            try:
                record, leaves = read_checkpoint(self.folder / str(step))
            except Damage as damage:
                reason = str(damage)
        reasons = hosts.gather("damage of a checkpoint", reason)
        for process, text in enumerate(reasons):
            if text and not reasons[0]:
                raise RunError(
                    f"process 0 reads checkpoint {step} of {self.folder}, and process {process} does not ({text}): the "
                    "run dir must be one folder for all processes, on a shared disk or in a bucket"
                )
        if reasons[0]:
            tell(f"checkpoint {step} is damaged and is passed over: {reasons[0]}")
        return reasons[0], record, leaves

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Moves damaged checkpoints out of the way of the steps that are written again, without deleting anything."""
        for step in steps if self._manager else ():
            aside = self.folder.with_name(f"{self.folder.name}.damaged")
            files.make_folder(aside)
            taken = files.visible(aside)
            names = (f"{step}" if not number else f"{step}.{number + 1}" for number in range(len(taken) + 1))
            files.move(self.folder / str(step), aside / next(name for name in names if name not in taken))
        if steps and self._manager:
            self._manager.reload()


def list_steps(workdir: epath.Path) -> list[int]:
    """Returns the steps of a run dir's checkpoints that are whole, sorted.

    What is half-written has another name, or in a bucket no file that says that it is whole.
    """
    folder = workdir / CHECKPOINTS
    names = [name for name in files.visible(folder) if name.isdigit()]
    if not files.is_local(folder):
        names = [name for name in names if (folder / name / "commit_success.txt").exists()]
    return sorted(map(int, names))


def best_step(steps: Sequence[int], accuracies: Mapping[int, float]) -> int | None:
    """Returns which of some steps had the best validation accuracy, the later one of equals; None where none has."""
    return max((step for step in steps if step in accuracies), key=lambda step: (accuracies[step], step), default=None)


class _Preserved:
    """Orbax's policy: the newest checkpoints, and the one with the best validation accuracy."""

    def __init__(self, keep: int, checkpoints: Checkpoints) -> None:
        self._latest, self._checkpoints = LatestN(keep), checkpoints

    def should_preserve(self, checkpoints: Sequence[Info], *, context: PreservationContext) -> Sequence[bool]:
        known = self._checkpoints.accuracies
        best = best_step([info.step for info in checkpoints], known)
        latest = self._latest.should_preserve(checkpoints, context=context)
        return [kept or info.step == best for kept, info in zip(latest, checkpoints, strict=True)]


def _open_manager(folder: epath.Path, preserved: Any) -> ocp.CheckpointManager:
    """Opens orbax's manager for this process alone, so that it waits for no other."""
    files.make_folder(folder)
    if not files.is_local(folder):
        _check_bucket(folder)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preserved,
        cleanup_tmp_directories=True,
        create=False,
        multiprocessing_options=alone(),
    )
    handlers = {STATE: array_handler(), RECORD: ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(files.absolute(folder), options=options, item_handlers=handlers)


def _check_bucket(folder: epath.Path) -> None:
    """Asks now what orbax would ask when it first deletes a checkpoint, hours into a run."""
    from orbax.checkpoint._src.path import gcs_utils

    try:
        gcs_utils.is_hierarchical_namespace_enabled(folder)
    except Exception as error:  # of google-cloud-storage, its transport, or the search for credentials
        raise PathError(
            f"{folder}: the bucket does not say what kind it is ({one_line(error)}): grant storage.buckets.get (role "
            "Storage Legacy Bucket Reader), and set GOOGLE_CLOUD_PROJECT where the project is unknown"
        ) from error


def _bytes(leaves: Leaves) -> int:
    return sum(leaf.nbytes for leaf in leaves.values())
