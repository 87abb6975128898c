"""The two objects that a run hands down: what it works with, and where it stands."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from effnet_jax import hosts
from effnet_jax.data.sources.base import Source
from effnet_jax.train.compiling import CompileClock
from effnet_jax.train.meter import Meter
from effnet_jax.train.phases import Phase
from effnet_jax.train.rundir.checkpoints import Checkpoints
from effnet_jax.train.rundir.log import Log
from effnet_jax.train.rundir.progress import Progress
from effnet_jax.train.rundir.skipped import SkippedImages
from effnet_jax.train.screen import Screen
from effnet_jax.train.step.partition import Partition
from effnet_jax.train.step.state import TrainState
from effnet_jax.weights.metadata import Metadata


class StopAsked(Exception):
    """Somebody asked the run to stop, and all processes have come to the same point."""

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run works with; nothing of it is replaced.

    Attributes:
      config: checked.
      phases: resolved.
      sources: by split.
      model: of the run.
      partition: how steps run on the devices.
      workdir: the run dir.
      weights: metadata of the weights that the run started from, or None.
      checkpoints: of the run dir.
      log: its rows.
      screen: its console.
      skipped: images that it goes on without.
      stop: knows when somebody wishes to stop.
      eval_step: (resolution, first unit) → the compiled evaluation step.
      clock: of this attempt, and of what it compiles.
    """

    config: ConfigDict
    phases: Sequence[Phase]
    sources: Mapping[str, Source]
    model: Any
    partition: Partition
    workdir: epath.Path
    weights: Metadata | None
    checkpoints: Checkpoints
    log: Log
    screen: Screen
    skipped: SkippedImages
    stop: hosts.Stop
    eval_step: Callable[..., Any]
    clock: CompileClock

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.sources["train"].class_names)

    @property
    def chips(self) -> int:
        """How many chips train: on some TPUs two devices are one."""
        return sum(getattr(device, "core_on_chip", 0) == 0 for device in self.partition.mesh.devices.flat)

    def epoch_at(self, step: int) -> float:
        """How many times the images were shown after so many steps."""
        return step * self.config.batch_size / len(self.sources["train"])

    def rows(self, batch_size: int) -> np.ndarray:
        """The positions in a global batch that this process loads."""
        return self.partition.rows(batch_size)

    def tick(self) -> None:
        """Comes before each step and each batch of an evaluation, on all processes. Raises StopAsked at the same one.

        It costs a counter and a flag.
        """
        if signal := self.stop.tick():
            raise StopAsked(signal)


@dataclasses.dataclass
class Standing:
    """Where a run stands: what a checkpoint is made of.

    Attributes:
      state: on the devices.
      progress: how far the run is.
      entered: number of the phase whose optimizer the state has.
      began: `time.monotonic()` of this attempt, less the seconds of those before.
      meter: metrics of steps that are not counted into `progress` yet.
      first_step: what it took until this attempt's first step was done, once it is.
    """

    state: TrainState
    progress: Progress
    entered: int
    began: float
    meter: Meter | None = None
    first_step: dict[str, float] | None = None
