"""The programs of a run's phases, and the same ones lowered for devices that need not be there."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax.train.cache.store import TrunkCache, cached_inputs
from effnet_jax.train.config.checks import check_devices
from effnet_jax.train.initial import check_weights, make_model
from effnet_jax.train.phases import Phase, make_phases
from effnet_jax.train.step.partition import Partition, arranged, check_cut, make_partition
from effnet_jax.train.step.state import TrainState, create_state
from effnet_jax.train.step.steps import EvalStep, Inputs, TrainStep, make_eval_step, make_train_step


def partition_of(config: Any, devices: Sequence[jax.Device] | None = None) -> Partition:
    """How a checked config's steps run on devices in the order of the mesh; None: on all."""
    return make_partition(
        config.partition.mode,
        devices,
        fsdp=config.partition.fsdp,
        sharded=config.partition.sharded,
        microbatches=config.microbatches,
    )


def training_program(
    model: Any,
    phase: Phase,
    partition: Partition,
    *,
    ema: float,
    cache: TrunkCache | None = None,
) -> TrainStep:
    """The step of a phase, which is compiled at its first call: on images, or on what its trunk cache holds."""
    classes, smoothing = model.num_classes, phase.augment["label_smoothing"]
    inputs = Inputs(
        cached_inputs(classes, smoothing) if cache else phase.make_augment(classes),
        views=phase.views,
        first=cache.plan.first if cache else None,
        class_weights=phase.class_weights,
        smoothing=smoothing,
        repeats=phase.feed.sampling == "balanced",
    )
    averaged = partition.averaged_gradients
    step = make_train_step(model, phase.plan, phase.optimizer, inputs, ema_decay=ema, averaged=averaged)
    return partition.compile_train_step(step)


def evaluation_program(model: Any, partition: Partition, resolution: int, first: str | None = None) -> EvalStep:
    """The evaluation step, likewise: on images, or on what the unit `first` takes."""
    return partition.compile_eval_step(make_eval_step(model, resolution=resolution, first=first))


def state_shapes(model: Any, phase: Phase, *, ema: bool) -> TrainState:
    """Returns the shapes of a state in a phase, without computing anything."""

    def create() -> TrainState:
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        return create_state(variables, phase.optimizer, ema=ema)

    return jax.eval_shape(create)


@dataclasses.dataclass(frozen=True)
class PhasePrograms:
    """What a phase runs, on devices that need not be there: no data is read, no memory taken.

    Attributes:
      name: of the phase.
      batch_size: of all devices together.
      eval_batch_size: likewise.
      train: lowers the training step.
      evaluate: lowers the evaluation step.
    """

    name: str
    batch_size: int
    eval_batch_size: int
    train: Callable[[], jax.stages.Lowered]
    evaluate: Callable[[], jax.stages.Lowered]


def phase_programs(
    config: Any, devices: Sequence[jax.Device], *, images: Mapping[str, int], num_classes: int
) -> list[PhasePrograms]:
    """Prepares the programs of all phases. A phase with a trunk cache is taken without it: its images come in.

    Args:
      config: checked.
      devices: all, in any order; those of a topology description will do.
      images: number of images by split.
      num_classes: of the data.

    Raises:
      ConfigError: batches or state cannot be shared by so many devices.
    """
    check_devices(config, len(devices))
    metadata = check_weights(config)
    partition = partition_of(config, arranged(devices, config.partition.fsdp))
    model = make_model(config, metadata, num_classes, partition.mesh.size, partition.platform)
    phases = make_phases(config, images, metadata)
    return [_phase_programs(config, phase, model, partition) for phase in phases]


def _phase_programs(config: Any, phase: Phase, model: Any, partition: Partition) -> PhasePrograms:
    shapes = state_shapes(model, phase, ema=bool(config.ema))
    check_cut(partition, shapes.params)
    state = jax.tree.map(_placed, shapes, partition.state_shardings(shapes))
    feed = phase.feed

    def rows(count: int, side: int, types: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {name: (count, side, side, 3) if name == "image" else (count,) for name in types}
        return {n: _placed(jax.ShapeDtypeStruct(shapes[n], types[n]), partition.by_rows) for n in types}

    def train() -> jax.stages.Lowered:
        # Decoded squares, as they are to be augmented.
        types = {"image": np.uint8, "aspect": np.float32, "label": np.int32, "index": np.int32, "epoch": np.int32}
        program: Any = training_program(model, phase, partition, ema=config.ema)
        return program.lower(state, rows(feed.batch_size, feed.square, types))

    def evaluate() -> jax.stages.Lowered:
        # Photographs, as they are evaluated.
        types = {"image": np.float32, "label": np.int32, "mask": np.float32}
        program: Any = evaluation_program(model, partition, phase.resolution)
        return program.lower(state.variables, rows(feed.eval_batch_size, phase.resolution, types))

    return PhasePrograms(phase.name, feed.batch_size, feed.eval_batch_size, train, evaluate)


def _placed(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
