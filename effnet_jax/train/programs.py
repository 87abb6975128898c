"""The programs of a recipe's phases, lowered for devices that need not be there: no data is read, no memory taken."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax.train.config.checks import check_devices
from effnet_jax.train.initial import check_weights, make_model
from effnet_jax.train.phases import Phase, make_phases
from effnet_jax.train.start import state_shapes
from effnet_jax.train.step.partition import Partition, arranged, check_cut, make_partition
from effnet_jax.train.step.steps import make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class PhasePrograms:
    """What a phase runs.

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
      devices: in the order of the mesh; those of a topology description will do.
      images: number of images by split.
      num_classes: of the data.

    Raises:
      ConfigError: batches or state cannot be shared by so many devices.
    """
    check_devices(config, len(devices))
    metadata = check_weights(config) if config.weights else None
    partition = make_partition(
        config.partition.mode,
        arranged(devices, config.partition.fsdp),
        fsdp=config.partition.fsdp,
        sharded=config.partition.sharded,
        microbatches=config.microbatches,
    )
    model = make_model(config, metadata, num_classes, partition.mesh.size, partition.platform)
    phases = make_phases(config, images, crop=metadata.crop if metadata else "frac")
    return [_phase_programs(config, phase, model, partition) for phase in phases]


def _phase_programs(config: Any, phase: Phase, model: Any, partition: Partition) -> PhasePrograms:
    state = state_shapes(model, phase, ema=bool(config.ema))
    check_cut(partition, state.params)
    shardings = partition.state_shardings(state)
    state = jax.tree.map(_placed, state, shardings)

    def train() -> jax.stages.Lowered:
        step = make_train_step(
            model,
            phase.plan,
            phase.optimizer,
            phase.make_augment(model.num_classes),
            views=phase.views,
            ema_decay=config.ema,
            averaged=partition.averaged_gradients,
        )
        rows = _rows(phase, phase.feed.batch_size, ("aspect", "label", "index", "epoch"), phase.feed.square)
        return _lower(partition.compile_train_step(step), state, _batch(partition, rows, jnp.uint8))

    def evaluate() -> jax.stages.Lowered:
        step = make_eval_step(model, resolution=phase.resolution)
        rows = _rows(phase, phase.feed.eval_batch_size, ("label", "mask"), phase.resolution)
        return _lower(partition.compile_eval_step(step), state.variables, _batch(partition, rows, jnp.float32))

    return PhasePrograms(phase.name, phase.feed.batch_size, phase.feed.eval_batch_size, train, evaluate)


def _rows(phase: Phase, count: int, names: Sequence[str], side: int) -> dict[str, jax.ShapeDtypeStruct]:
    types = {"aspect": np.float32, "mask": np.float32}
    rows = {name: jax.ShapeDtypeStruct((count,), types.get(name, np.int32)) for name in names}
    return {**rows, "image": jax.ShapeDtypeStruct((count, side, side, 3), np.float32)}


def _batch(partition: Partition, rows: Mapping[str, Any], images: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What comes in: decoded squares as they are to be augmented, or photographs as they are evaluated."""
    rows = {**rows, "image": jax.ShapeDtypeStruct(rows["image"].shape, images)}
    return {name: _placed(shape, partition.by_rows) for name, shape in rows.items()}


def _placed(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _lower(program: Any, *arguments: Any) -> jax.stages.Lowered:
    return program.lower(*arguments)
