"""Where things live: the mesh of all devices, how state and batches lie on it, and the programs that run on it.

Each device runs one program on its share of the batch (`jax.shard_map` inside one `jax.jit`), and averages what it
comes to with the others. Under `pjit` that holds for batch statistics too, so that the numbers are those of one device
with the whole batch; under `pmap` each device, or each group of them, has statistics of its own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from effnet_jax.choices import PARTITION_MODES, SHARDED
from effnet_jax.errors import ConfigError, nearest

DATA, FSDP = AXES = ("data", "fsdp")
# Smaller arrays are on every device: sharding them saves nothing, and each costs a message.
_LEAST_SHARDED = 1024
# What of a state has to be cut where that is asked for.
_LEAST_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Partition:
    """How steps run on the devices.

    Attributes:
      mode: `"pjit"` or `"pmap"`.
      mesh: all devices along two axes, `"data"` and `"fsdp"`. A batch is shared by all of them; what of a state is
        sharded is so over `"fsdp"`.
      sharded: what of a state is sharded: `"state"`, all of it, or `"optimizer"`, its optimizer's state and averages.
      microbatches: pieces that a device's share of a batch is cut into, one after the other. An example's noise is its
        own, so that the gradient is the same up to rounding; but batch norm that is trained normalises each piece by
        itself, and the stored statistics move by the mean over the pieces.
    """

    mode: str
    mesh: Mesh
    sharded: str = "state"
    microbatches: int = 1

    @property
    def platform(self) -> str:
        """Of the devices: `"cpu"`, `"gpu"` or `"tpu"`."""
        return str(self.mesh.devices.flat[0].platform)

    # ---- how things lie

    @property
    def spread(self) -> bool:
        """Whether pieces of the state are on other processes: then all have to come to read it."""
        return self.mesh.shape[FSDP] > 1 and not self.replicated.is_fully_addressable

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_rows(self) -> NamedSharding:
        """The first axis over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXES))

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns the positions in a global batch that this process loads, in the order that `place_batch` takes.

        They follow from where the mesh has this process's devices: a TPU slice orders its devices along its torus,
        and not by process.
        """
        return np.concatenate([np.arange(start, stop) for _, start, stop in self._slices(batch_size)])

    def _slices(self, batch_size: int) -> list[tuple[jax.Device, int, int]]:
        """(device of this process, first row of the global batch, row after the last), in the mesh's order."""
        indices = self.by_rows.addressable_devices_indices_map((batch_size,))
        spans = [(device, *index[0].indices(batch_size)[:2]) for device, index in indices.items() if index]
        return sorted(spans, key=lambda span: span[1])

    def axis_to_shard(self, shape: tuple[int, ...]) -> int | None:
        """Returns the axis of a sharded array that is cut: the longest that can be; None where it stays whole."""
        pieces = self.mesh.shape[FSDP]
        axes = [axis for axis, size in enumerate(shape) if size % pieces == 0]
        if pieces == 1 or not axes or np.prod(shape) < _LEAST_SHARDED:
            return None
        return max(axes, key=lambda axis: (shape[axis], axis))

    def cut_share(self, tree: Any) -> float:
        """Returns how much of a state, arrays or their shapes, is cut into pieces: from 0 to 1, by elements."""
        sizes = [(np.prod(np.shape(leaf)), self.axis_to_shard(np.shape(leaf))) for leaf in jax.tree.leaves(tree)]
        return float(sum(size for size, axis in sizes if axis is not None) / max(sum(size for size, _ in sizes), 1))

    def _spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        axis = self.axis_to_shard(shape)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, FSDP)

    def state_shardings(self, tree: Any) -> Any:
        """The sharding of every leaf of a state, arrays or their shapes."""

        def sharding(path: Any, leaf: Any) -> NamedSharding:
            of_optimizer = getattr(path[0], "name", "") in ("opt_state", "ema") if path else False
            cut = of_optimizer or self.sharded == "state"
            return NamedSharding(self.mesh, self._spec(np.shape(leaf)) if cut else PartitionSpec())

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def place_state(self, tree: Any) -> Any:
        """Places a state, the same on every process, onto the devices: each gets its piece and no more.

        Args:
          tree: of NumPy arrays, of a process's own arrays, or of all processes'. Its old buffers stay valid.
        """

        def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return leaf
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

        shardings = self.state_shardings(tree)
        # A copy, since on the CPU a device may take NumPy's memory for its own, and a state is given away.
        return jax.jit(lambda tree: tree, out_shardings=shardings)(jax.tree.map(place, tree, shardings))

    def make_state(self, function: Callable[..., Any], *arguments: Any, donate: bool = False) -> Any:
        """Computes a state so that it is sharded from the start: no device ever holds more of it than its piece.

        Args:
          function: of the arguments, pure.
          *arguments: on the devices.
          donate: whether the first argument is given away.
        """
        shardings = self.state_shardings(jax.eval_shape(function, *arguments))
        return jax.jit(function, out_shardings=shardings, donate_argnums=(0,) if donate else ())(*arguments)

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Places this process's rows of a batch, `rows(N)`, onto its devices: [local N, …] → global arrays [N, …]."""
        share = next(iter(batch.values())).shape[0]
        size = share * self.mesh.size // len(self.by_rows.addressable_devices)
        slices = self._slices(size)

        def place(value: np.ndarray) -> jax.Array:
            parts = np.split(value, len(slices))  # each device has as many rows
            arrays = jax.device_put(parts, [device for device, _, _ in slices])
            return jax.make_array_from_single_device_arrays((size, *value.shape[1:]), self.by_rows, arrays)

        return {key: place(value) for key, value in batch.items()}

    # ---- programs

    def averaged_gradients(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Makes a function of the global batch from that of a piece of it.

        Args:
          function: (trained, others, batch) → (gradients like `trained`, batch statistics, metrics), means over its
            batch. Under `pjit` its statistics are those of the global batch already.

        Returns:
          The same of global arrays. Gradients come out as the optimizer's state lies.
        """
        of_share = _in_pieces(function, self.microbatches)
        if self.mesh.size == 1:
            return of_share

        def on_each(trained: Any, others: Any, batch: Any) -> Any:
            gradients, statistics, metrics = of_share(trained, others, batch)
            if self.mode == "pmap":
                statistics = lax.pmean(statistics, AXES)
            return self._scattered(gradients), statistics, lax.pmean(metrics, AXES)

        def on_all(trained: Any, others: Any, batch: Any) -> Any:
            specs = jax.tree.map(lambda leaf: self._spec(leaf.shape), trained)
            given = (PartitionSpec(), PartitionSpec(), PartitionSpec(AXES))
            return self._on_each(on_each, given, (specs, PartitionSpec(), PartitionSpec()))(trained, others, batch)

        return on_all

    def _scattered(self, gradients: Any) -> Any:
        """Averages over all devices, each of which gets the piece that it keeps."""
        pieces = self.mesh.shape[FSDP]

        def average(leaf: jax.Array) -> jax.Array:
            axis = self.axis_to_shard(leaf.shape)
            if axis is None:
                return lax.pmean(leaf, AXES)
            return lax.pmean(lax.psum_scatter(leaf, FSDP, scatter_dimension=axis, tiled=True) / pieces, DATA)

        return jax.tree.map(average, gradients)

    def summed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Makes a function (values, global batch) → sums from that of one device's share."""
        if self.mesh.size == 1:
            return function

        def on_each(values: Any, batch: Any) -> Any:
            return lax.psum(function(values, batch), AXES)

        return self._on_each(on_each, (PartitionSpec(), PartitionSpec(AXES)), PartitionSpec())

    def _on_each(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        # Not checked: what comes out whole is the same on all devices because it was averaged.
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def compile_train_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles (state, batch) → (state, metrics). The state is given away: use the returned one."""

        def placed(state: Any, batch: Any) -> Any:
            new, metrics = step(state, batch)
            new = lax.with_sharding_constraint(new, self.state_shardings(new))
            return new, lax.with_sharding_constraint(metrics, self.replicated)

        return jax.jit(placed, donate_argnums=0)

    def compile_eval_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles (variables, batch) → sums, of one device's share → of the global batch."""
        return jax.jit(self.summed(step), out_shardings=self.replicated)

    def compile_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles (values, batch) → arrays with a row for each example, of a device's share → of the global batch.

        What comes out is whole on every device.
        """

        def on_each(values: Any, batch: Any) -> Any:
            return lax.all_gather(function(values, batch), AXES, tiled=True)

        if self.mesh.size == 1:
            return jax.jit(function)
        given = (PartitionSpec(), PartitionSpec(AXES))
        return jax.jit(self._on_each(on_each, given, PartitionSpec()), out_shardings=self.replicated)


def _in_pieces(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Runs a function on `count` pieces of its batch, one after the other, and averages what it gives."""
    if count == 1:
        return function

    def in_pieces(trained: Any, others: Any, batch: Any) -> Any:
        pieces = jax.tree.map(lambda rows: rows.reshape(count, -1, *rows.shape[1:]), batch)

        def add(total: Any, piece: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(trained, others, piece)), None

        shapes = jax.eval_shape(function, trained, others, jax.tree.map(lambda rows: rows[0], pieces))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.tree.map(lambda total: total / count, lax.scan(add, zeros, pieces)[0])

    return in_pieces


def _mesh(devices: Sequence[jax.Device], fsdp: int = 1) -> Mesh:
    return Mesh(np.array(devices).reshape(-1, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def make_partition(
    mode: str = "pjit",
    devices: Sequence[jax.Device] | None = None,
    *,
    fsdp: int = 1,
    sharded: str = "state",
    microbatches: int = 1,
) -> Partition:
    """Makes the mesh.

    Args:
      mode: `"pjit"` or `"pmap"`.
      devices: in the order of the mesh; None: all devices of all processes, as `arranged`.
      fsdp: over how many neighbours a state is sharded; 1: each device has all of it.
      sharded: what of the state is: `"state"` or `"optimizer"`.
      microbatches: pieces of each device's share.

    Raises:
      ConfigError: an unknown mode, or devices that do not make groups of `fsdp`.
    """
    for value, names, key in ((mode, PARTITION_MODES, "mode"), (sharded, SHARDED, "sharded")):
        if value not in names:
            raise ConfigError(f"partition.{key}={value!r}: {nearest(value, names)}")
    count = len(devices) if devices is not None else jax.device_count()
    if count % fsdp:
        sizes = ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
        raise ConfigError(f"partition.fsdp={fsdp} does not divide the {count} devices: use one of {sizes}")
    if devices is None:
        devices = arranged(jax.devices(), fsdp)
    return Partition(mode, _mesh(devices, fsdp), sharded, microbatches)


def arranged(devices: Sequence[jax.Device], fsdp: int = 1) -> list[jax.Device]:
    """Returns devices in the order of a mesh: neighbours on the chips' torus side by side, slices one after the other.

    Args:
      devices: all of them.
      fsdp: over how many neighbours a state is sharded.

    Raises:
      ConfigError: a slice does not make groups of `fsdp`.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    each = len(devices) // slices
    if each % fsdp:
        raise ConfigError(
            f"partition.fsdp={fsdp} does not divide the {each} devices of each of {slices} slices, and the pieces of a "
            "state lie within one: take a divisor"
        )
    if slices == 1:
        shape = (each // fsdp, fsdp)
        return list(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True).flat)
    mesh = mesh_utils.create_hybrid_device_mesh(
        (each // fsdp, fsdp), (slices, 1), devices, allow_split_physical_axes=True
    )
    return list(mesh.flat)


def check_cut(partition: Partition, shapes: Any) -> None:
    """Raises ConfigError where `fsdp` leaves most of a state whole, since its sizes have no such divisor.

    Args:
      partition: of the run.
      shapes: of its parameters.
    """
    count, fsdp = partition.mesh.size, partition.mesh.shape[FSDP]
    share = partition.cut_share(shapes)
    if fsdp == 1 or share >= _LEAST_SHARE:
        return
    devices = list(partition.mesh.devices.flat)
    sizes = [size for size in range(2, count + 1) if count % size == 0]
    good = [
        s for s in sizes if dataclasses.replace(partition, mesh=_mesh(devices, s)).cut_share(shapes) >= _LEAST_SHARE
    ]
    cure = f"use {' or '.join(map(str, good[-2:]))}" if good else "set it to 1"
    raise ConfigError(
        f"partition.fsdp={fsdp} divides {share:.0%} of the parameters, the rest would be whole on every device: {cure}"
    )
