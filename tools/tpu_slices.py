"""The slices of Cloud TPU that can be asked for, as data.

Names and sizes: https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e. Runtime versions: …/tpu/docs/runtimes.
"""

from typing import NamedTuple

from effnet_jax.errors import ConfigError, nearest
from effnet_jax.tpu.chips import CHIPS, parse_topology


class Generation(NamedTuple):
    """A kind of TPU.

    Attributes:
      prefix: of the accelerator types.
      runtime: the version of the machines' software that JAX is installed on.
      one_host: the most chips of a slice with one host; a host of a larger slice has four.
      sizes: as they stand in names.
    """

    prefix: str
    runtime: str
    one_host: int
    sizes: tuple[int, ...]


class Slice(NamedTuple):
    """A slice that can be asked for."""

    accelerator: str
    runtime: str
    chips: int
    hosts: int


_POWERS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
GENERATIONS = {
    "v4": Generation("v4", "tpu-ubuntu2204-base", 4, (*_POWERS, 1536)),
    "v5e": Generation("v5litepod", "v2-alpha-tpuv5-lite", 8, (1, 4, 8, 16, 32, 64, 128, 256)),
    "v5p": Generation("v5p", "v2-alpha-tpuv5", 4, (*_POWERS, 384, 640, 768, 896, 1152, 1280, 1536, 8192, 12288)),
    "v6e": Generation("v6e", "v2-alpha-tpuv6e", 8, (1, 4, 8, 16, 32, 64, 128, 256)),
}


def find_slice(topology: str) -> Slice:
    """Returns the slice of a name such as `v5e-16`, `v5litepod-16` as Cloud TPU has it, or `v5e:4x4`.

    Raises:
      ConfigError: there is none of that name.
    """
    slices = {}
    for name, kind in GENERATIONS.items():
        for size in kind.sizes:
            chips = size // CHIPS[name].cores
            hosts = 1 if chips <= kind.one_host else chips // 4
            found = Slice(f"{kind.prefix}-{size}", kind.runtime, chips, hosts)
            slices[f"{name}-{size}"] = slices[found.accelerator] = found
    if ":" in topology:
        asked = parse_topology(topology)
        if parse_topology(asked.cloud_name) != asked:
            usual = parse_topology(asked.cloud_name).name
            raise ConfigError(f"--topology={topology}: of that size, {asked.cloud_name}, is {usual}: use that")
        topology = asked.cloud_name
    if topology not in slices:
        raise ConfigError(f"--topology={topology}: there is no such slice: {nearest(topology, slices)}")
    return slices[topology]
