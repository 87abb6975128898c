"""Where things live: the mesh of all devices, the placing of state and batches, and the two forms of one step.

`pjit` is today's `jax.jit` over a mesh with named shardings: one program that sees the global batch. `pmap` is one
program for each device, which averages over the axis "data".
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from effnet_jax.errors import ConfigError, nearest

AXIS = "data"
MODES = ("pjit", "pmap")


def check_batch_size(batch_size: int, devices: int, name: str = "batch_size") -> None:
    """Raises ConfigError where a batch cannot be shared evenly by the devices."""
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        choices = " or ".join(str(size) for size in (below, below + devices) if size)
        raise ConfigError(f"{name}={batch_size} cannot be shared evenly by {devices} devices: use {choices}")


@dataclasses.dataclass(frozen=True)
class Partition:
    """How steps run on the devices.

    Attributes:
      mode: `"pjit"` or `"pmap"`.
      mesh: all devices in one axis, `"data"`.
    """

    mode: str
    mesh: Mesh

    @property
    def axis_name(self) -> str | None:
        """What a step averages over itself: nothing under pjit, whose program sees the whole batch."""
        return AXIS if self.mode == "pmap" else None

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        """The first axis over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def state_shardings(self, tree: Any) -> Any:
        """The sharding of every leaf of a state. All replicated; another layout of parameters begins here."""
        return jax.tree.map(lambda leaf: self.replicated, tree)

    def place_state(self, tree: Any) -> Any:
        """Places a state, the same on every process, onto the devices. Its old buffers stay valid."""
        copy = jax.jit(lambda tree: tree, out_shardings=self.state_shardings(tree))
        return copy(jax.tree.map(np.asarray, tree))

    def abstract_state(self, tree: Any) -> Any:
        """Shapes with shardings, for restoring a checkpoint onto these devices."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            self.state_shardings(tree),
        )

    def place_batch(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Places this process's part of a batch: [local N, …] → a global array, or [local devices, N, …] for pmap."""
        if self.mode == "pmap":
            count = jax.local_device_count()
            return {key: value.reshape(count, -1, *value.shape[1:]) for key, value in batch.items()}
        return {key: jax.make_array_from_process_local_data(self.sharded, value) for key, value in batch.items()}

    def compile_train_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles (state, batch) → (state, metrics). The state is given away: use the returned one."""
        if self.mode == "pmap":
            return jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=None)
        return jax.jit(step, donate_argnums=0, out_shardings=self.replicated)

    def compile_eval_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles (variables, batch) → sums."""
        if self.mode == "pmap":
            return jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=None)
        return jax.jit(step, out_shardings=self.replicated)


def anywhere(condition: bool) -> bool:
    """Whether a condition holds on any process: for decisions that all must take together."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.int32(condition)).any())


def make_partition(mode: str = "pjit", devices: Sequence[jax.Device] | None = None) -> Partition:
    """Makes the mesh.

    Args:
      mode: `"pjit"` or `"pmap"`.
      devices: None: all devices of all processes.

    Raises:
      ConfigError: an unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"partition.mode={mode!r}: {nearest(mode, MODES)}")
    devices = jax.devices() if devices is None else devices
    make_mesh = functools.partial(jax.make_mesh, axis_types=(AxisType.Auto,))
    return Partition(mode, make_mesh((len(devices),), (AXIS,), devices=devices))
