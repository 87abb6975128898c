"""`python -m effnet_jax.tpu --config=FILE --topology=v5e:2x2`: compiles a recipe for a slice that is not there."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from effnet_jax.errors import ConfigError, nearest, run_command
from effnet_jax.tpu import AUTO
from effnet_jax.tpu.chips import parse_topology
from effnet_jax.train.__main__ import parse_command
from effnet_jax.train.config import check_config

USAGE = """usage: python -m effnet_jax.tpu --config=FILE[:ARGUMENT] --topology=SLICE [--json=OUT] [--batch_size=N|auto]
           [--images=N] [--config.KEY=VALUE …]

Compiles the training step and the evaluation step of each phase of a recipe for a slice of Cloud TPU, without a TPU
(pip install 'effnet-jax[tpu]', Linux), and says what they need and do: memory, traffic, and what the chip's peak and
bandwidths make of these. A step takes one to five minutes of two cores.

  --topology=v5e:4x4         the generation and the chips along each dimension: v5e, v6e, v4, v5p; or v5e-16
  --json=OUT                 writes the figures there too
  --batch_size=256           of all chips together, in place of the config's; auto: the largest that fits
  --images=50000             of the training split; the data's where it is here, else ImageNet's

The exit status is 1 where a step does not fit.
"""
_FLAGS = ("topology", "json", "batch_size", "images")


class Command(NamedTuple):
    """What the command was given; the config is unchecked, the numbers are 0 where they were left out."""

    config: Any
    topology: str
    json: str
    batch_size: int
    images: int


def main() -> int:
    """Runs the command. Returns its exit status."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return 0
    command = parse_arguments(sys.argv)
    check_config(command.config)
    topology = parse_topology(command.topology)
    # JAX is imported after the flags and the config, so that a mistyped one is told at once. It looks for no device,
    # and keeps no programs: it could not read those for devices that are not there.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    from effnet_jax import files
    from effnet_jax.tpu.recipe import compile_recipe, misfits
    from effnet_jax.tpu.screen import print_result

    if command.json:
        files.make_folder(files.absolute(command.json).parent)
    result = compile_recipe(
        command.config,
        topology,
        batch_size=command.batch_size,
        images=command.images,
        tell=lambda line: print(line, flush=True),
    )
    if command.json:
        files.write_json(command.json, result)
    print_result(result)
    lines = misfits(result)
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


def parse_arguments(argv: Sequence[str]) -> Command:
    """Reads the command's flags; those of the config are read as `python -m effnet_jax.train` reads them.

    Args:
      argv: arguments with the program's name first.

    Raises:
      ConfigError: a flag, file, key or value that does not exist or cannot be read.
    """
    own: dict[str, str] = {}
    rest = [argv[0]]
    for argument in argv[1:]:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in _FLAGS:
            if not equals or not value:
                raise ConfigError(f"--{name} has no value: write --{name}=…")
            own[name] = value
        elif argument.startswith("--") and not name.startswith("config"):
            raise ConfigError(f"--{name} is no flag: {nearest(name, [*_FLAGS, 'config'])}")
        else:
            rest.append(argument)
    if "topology" not in own:
        raise ConfigError("--topology=SLICE is missing: name a slice, such as --topology=v5e:2x2")
    # The run dir is the training command's; nothing is written there.
    config = parse_command([*rest, "--workdir=none"]).config
    return Command(
        config=config,
        topology=own["topology"],
        json=own.get("json", ""),
        batch_size=AUTO if own.get("batch_size") == "auto" else _number(own, "batch_size", ", or auto"),
        images=_number(own, "images"),
    )


def _number(given: Mapping[str, str], name: str, other: str = "") -> int:
    text = given.get(name, "")
    if text and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"--{name}={text} needs a whole number from 1{other}")
    return int(text or 0)


if __name__ == "__main__":
    run_command(main)
