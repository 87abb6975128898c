"""Where things live: the mesh of all devices, the placing of state and batches, and the two forms of one step.

`pjit` is today's `jax.jit` over a mesh with named shardings: one program that sees the global batch. `pmap` is one
program for each device, which averages over the axis "data": `jax.shard_map` inside the same `jax.jit`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from effnet_jax.choices import PARTITION_MODES
from effnet_jax.errors import ConfigError, nearest

AXIS = "data"


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

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns the positions in a global batch that this process loads, in the order that `place_batch` takes.

        They follow from where the mesh has this process's devices: a TPU slice orders its devices along its torus,
        and not by process.
        """
        return np.concatenate([np.arange(start, stop) for _, start, stop in self._slices(batch_size)])

    def _slices(self, batch_size: int) -> list[tuple[jax.Device, int, int]]:
        """(device of this process, first row of the global batch, row after the last), in the mesh's order."""
        indices = self.sharded.addressable_devices_indices_map((batch_size,))
        spans = [(device, *index[0].indices(batch_size)[:2]) for device, index in indices.items() if index]
        return sorted(spans, key=lambda span: span[1])

    def local(self) -> "Partition":
        """The devices of the mesh that belong to this process, as a partition of their own."""
        devices = self.mesh.local_devices
        return Partition("pjit", Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,)))

    def state_shardings(self, tree: Any) -> Any:
        """The sharding of every leaf of a state. All replicated; another layout of parameters begins here."""
        return jax.tree.map(lambda leaf: self.replicated, tree)

    def place_state(self, tree: Any) -> Any:
        """Places a state, the same on every process, onto the devices. Its old buffers stay valid."""
        copy = jax.jit(lambda tree: tree, out_shardings=self.state_shardings(tree))
        return copy(jax.tree.map(np.asarray, tree))

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Places this process's rows of a batch, `rows(N)`, onto its devices: [local N, …] → global arrays [N, …]."""
        share = next(iter(batch.values())).shape[0]
        size = share * self.mesh.size // len(self.sharded.addressable_devices)
        slices = self._slices(size)

        def place(value: np.ndarray) -> jax.Array:
            parts = np.split(value, len(slices))  # each device has as many rows
            arrays = jax.device_put(parts, [device for device, _, _ in slices])
            return jax.make_array_from_single_device_arrays((size, *value.shape[1:]), self.sharded, arrays)

        return {key: place(value) for key, value in batch.items()}

    def compile_train_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles (state, batch) → (state, metrics). The state is given away: use the returned one."""
        return jax.jit(self._mapped(step), donate_argnums=0, out_shardings=self.replicated)

    def compile_eval_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles (variables, batch) → sums."""
        return jax.jit(self._mapped(step), out_shardings=self.replicated)

    def _mapped(self, step: Callable[..., Any]) -> Callable[..., Any]:
        if self.mode == "pjit":
            return step
        specs = (PartitionSpec(), PartitionSpec(AXIS))
        # Not checked: what a step returns is the same on all devices because it averages by itself.
        return jax.shard_map(step, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)


def make_partition(mode: str = "pjit", devices: Sequence[jax.Device] | None = None) -> Partition:
    """Makes the mesh.

    Args:
      mode: `"pjit"` or `"pmap"`.
      devices: in the order of the mesh; None: all devices of all processes, in the order that JAX finds best.

    Raises:
      ConfigError: an unknown mode.
    """
    if mode not in PARTITION_MODES:
        raise ConfigError(f"partition.mode={mode!r}: {nearest(mode, PARTITION_MODES)}")
    if devices is not None:
        return Partition(mode, Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,)))
    make_mesh = functools.partial(jax.make_mesh, axis_types=(AxisType.Auto,))
    return Partition(mode, make_mesh((jax.device_count(),), (AXIS,)))
