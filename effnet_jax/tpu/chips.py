"""The chips of Cloud TPU as published, and the slices that they come in.

Sources: https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (peak, HBM, interconnect, topologies); for v4's
interconnect, which that page leaves out, Jouppi et al. 2023, "TPU v4: An Optically Reconfigurable Supercomputer",
table 4: 6 links of 50 GB/s.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any

from effnet_jax.errors import ConfigError, EffnetError, nearest

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation's chip. JAX sees each as one device: the two TensorCores of v4 and v5p work as one (megacore).

    Attributes:
      name: the generation.
      hbm_bytes: memory.
      reserve_bytes: of it, what no program gets; libtpu 0.0.42 says so when a program is too large.
      hbm_bandwidth: bytes a second.
      peak_flops: operations a second in bfloat16.
      interchip_bandwidth: bytes a second that a chip can send through all of its links: half of what is published for
        both directions. A slice without wraparound links, such as v5e:2x2, has fewer.
      chips_per_host: in a slice with several hosts.
      flat: whether slices have two dimensions; else three.
      largest: chips of the largest slice.
      cores: of a chip, which Cloud TPU's names of slices count: `v4-16` has 8 chips.
    """

    name: str
    hbm_bytes: int
    reserve_bytes: int
    hbm_bandwidth: float
    peak_flops: float
    interchip_bandwidth: float
    chips_per_host: int
    flat: bool
    largest: int
    cores: int = 1

    @property
    def usable_bytes(self) -> int:
        """Memory that a program can have."""
        return self.hbm_bytes - self.reserve_bytes


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * _GIB, 5 * _GIB // 4, 1200e9, 275e12, 300e9, 4, flat=False, largest=4096, cores=2),
        Chip("v5e", 16 * _GIB, _GIB // 4, 819e9, 197e12, 200e9, 4, flat=True, largest=256),
        Chip("v5p", 95 * _GIB, 0, 2765e9, 459e12, 600e9, 4, flat=False, largest=6144, cores=2),
        Chip("v6e", 32 * _GIB, 3 * _GIB // 4, 1638e9, 918e12, 400e9, 4, flat=True, largest=256),
    )
}
_FLAT_SHAPES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_SHAPES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # larger ones are made of cubes 4x4x4


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: a chip, and how many of them along each dimension."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def cloud_name(self) -> str:
        """As `tools/tpu_pod.py` and Cloud TPU count it: `v5e-16`."""
        return f"{self.chip.name}-{self.chips * self.chip.cores}"


def parse_topology(name: str) -> Topology:
    """Reads the name of a slice: `v5e:4x4` or `v5p:4x4x8`; or as Cloud TPU counts it, `v5e-16` or `v5litepod-16`.

    Raises:
      ConfigError: there is no such slice.
    """
    if counted := re.fullmatch(r"(v\d\w*?)(litepod)?-([1-9]\d{0,5})", name):
        generation = counted[1] + ("e" if counted[2] else "")
        if generation not in CHIPS:
            raise ConfigError(f"topology {name!r}: there is no TPU {generation!r}: {nearest(generation, CHIPS)}")
        return _of_size(CHIPS[generation], int(counted[3]), name)
    generation, _, shape = name.partition(":")
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", shape):
        example = "v5e:4x4 or v4:2x2x1"
        raise ConfigError(
            f"topology {name!r}: write the generation and the chips along each dimension, such as {example}"
        )
    if generation not in CHIPS:
        raise ConfigError(f"topology {name!r}: there is no TPU {generation!r}: {nearest(generation, CHIPS)}")
    chip = CHIPS[generation]
    sizes = tuple(map(int, shape.split("x")))
    if len(sizes) != (2 if chip.flat else 3):
        dimensions = "two dimensions, such as 4x4" if chip.flat else "three dimensions, such as 2x2x1"
        raise ConfigError(f"topology {name!r}: slices of {generation} have {dimensions}")
    if not _is_published(chip, shape, sizes):
        raise ConfigError(f"topology {name!r}: there is no such slice: use {_shapes(chip)}")
    return Topology(chip, sizes)


def _of_size(chip: Chip, size: int, name: str) -> Topology:
    """The slice of so many cores, in the shape that Cloud TPU gives where none is asked for: the most cubic one."""
    shapes = [tuple(map(int, shape.split("x"))) for shape in (_FLAT_SHAPES if chip.flat else _SMALL_SHAPES)]
    if not chip.flat:
        sides = range(4, chip.largest // 16 + 1, 4)
        chips = size // chip.cores
        shapes += [
            (a, b, chips // (a * b)) for a in sides for b in sides if a <= b <= chips / (a * b) and chips % (a * b) == 0
        ]
    fitting = [
        shape
        for shape in shapes
        if math.prod(shape) * chip.cores == size and _is_published(chip, "x".join(map(str, shape)), shape)
    ]
    if not fitting:
        raise ConfigError(f"topology {name!r}: there is no slice of that size: use {_shapes(chip)}")
    return Topology(chip, min(fitting, key=sum))


def _is_published(chip: Chip, shape: str, sizes: tuple[int, ...]) -> bool:
    if chip.flat:
        return shape in _FLAT_SHAPES
    cubes = all(size % 4 == 0 for size in sizes) and list(sizes) == sorted(sizes)
    return shape in _SMALL_SHAPES or (cubes and math.prod(sizes) <= chip.largest)


def _shapes(chip: Chip) -> str:
    if chip.flat:
        return ", ".join(_FLAT_SHAPES)
    return f"{', '.join(_SMALL_SHAPES)}, or multiples of 4 in rising order, up to {chip.largest} chips, such as 4x4x8"


@functools.cache
def topology_devices(name: str) -> tuple[Any, ...]:
    """Returns the devices of a slice that is not there: programs can be compiled for them, and never run.

    They are in libtpu's own order, along the slice's dimensions.

    Args:
      name: such as `v5e:4x4`.

    Raises:
      ConfigError: there is no such slice.
      EffnetError: libtpu, which has the compiler, is not installed, or refuses the slice.
    """
    topology = parse_topology(name)
    if not os.environ.get("TPU_LIBRARY_PATH") and importlib.util.find_spec("libtpu") is None:
        raise EffnetError("libtpu, the compiler for TPUs, is not installed: pip install 'effnet-jax[tpu]' (Linux)")
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with _quiet_libtpu():
            devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except (JaxRuntimeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise EffnetError(
            f"libtpu cannot compile for {name}: {reason}; take another topology, or bring libtpu up to date: "
            "pip install --upgrade 'effnet-jax[tpu]'"
        ) from error
    if len(devices) != topology.chips:
        raise EffnetError(
            f"libtpu has {len(devices)} devices for the {topology.chips} chips of {name}: pip install --upgrade "
            "'effnet-jax[tpu]'"
        )
    return tuple(devices)


@contextlib.contextmanager
def _quiet_libtpu() -> Iterator[None]:
    """Tells libtpu while it is loaded what it would look for on a machine with TPUs, and complain of elsewhere."""
    told = {
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # beside another process that compiles: no chip is taken
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any: the topology's name says what is compiled for
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    missing = {key: value for key, value in told.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            del os.environ[key]
