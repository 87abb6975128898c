"""`python -m effnet_jax.train --config=FILE --workdir=DIR`: trains as a recipe says, and resumes."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from effnet_jax.errors import ConfigError, nearest, run_command
from effnet_jax.recipes import find_recipe
from effnet_jax.train.config import check_config, default_config, flat, plain

USAGE = """usage: python -m effnet_jax.train --config=FILE[:ARGUMENT] --workdir=DIR [--config.KEY=VALUE …]

Trains as the recipe FILE says (`get_config(ARGUMENT)`; ARGUMENT "smoke" shrinks a recipe to a minute; the name of a
recipe of the package, such as quickstart or cifar100_b0, stands for its file) and writes
curves, weights and figures to DIR. Started again with the same command it goes on from the last checkpoint.

  --config.batch_size=32                     changes a key of the config
  --config.phases[0].learning_rate=0.02      changes a key of a phase

Run on every host of a Cloud TPU slice, or under SLURM, GKE or Open MPI, it joins the hosts by itself; elsewhere with
  --coordinator=HOST:PORT --processes=N --process=I      of process 0; how many; which this is, from 0
"""


class Command(NamedTuple):
    """What the command was given: the config as recipe and overrides make it, unchecked, and the run dir."""

    config: ConfigDict
    workdir: str
    coordinator: str = ""
    processes: int = 0
    process: int = -1


def main() -> int:
    """Runs the command. Returns its exit status."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return 0
    command = parse_command(sys.argv)
    config = check_config(command.config)
    # After the flags and the config, so that a mistyped one is told at once.
    from effnet_jax import hosts
    from effnet_jax.train.compiling import keep_programs
    from effnet_jax.train.loop import train

    hosts.join(command.coordinator, command.processes, command.process)
    print(hosts.describe(), flush=True)
    if (words := keep_programs(config.compile_cache)) and hosts.is_first():
        print(words, flush=True)
    train(command.config, command.workdir)
    return 0


def parse_command(argv: Sequence[str]) -> Command:
    """Reads `--config=FILE[:ARGUMENT] --workdir=DIR [--config.key=value …]`.

    Args:
      argv: arguments with the program's name first.

    Raises:
      ConfigError: a flag, file, key or value that does not exist or cannot be read.
    """
    path = next((argument.split("=", 1)[1] for argument in argv if argument.startswith("--config=")), "")
    if path:
        path = find_recipe(path)
        argv = [f"--config={path}" if argument.startswith("--config=") else argument for argument in argv]
    # An own FlagValues: the command can then be called again in one process, and other modules' flags stay out.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", "", "the run dir", flag_values=values)
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("processes", 0, "how many processes there are", flag_values=values)
    flags.DEFINE_integer("process", -1, "which process this is, from 0", flag_values=values)
    if not path:
        raise ConfigError("--config=FILE is missing: name a recipe, such as --config=quickstart")
    overrides = [argument.split("=", 1)[0] for argument in argv[1:] if argument.startswith("--config.")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of how ml_collections loads a module
            rest = values(list(argv))
        config = values["config"].value
    except (AttributeError, KeyError, IndexError) as error:
        if not overrides:  # a bug of the recipe, whose author needs the traceback
            raise
        config = parse_command([argument for argument in argv if not argument.startswith("--config.")]).config
        known = [key for key, _ in flat(plain(config))]
        unknown = [key for key in overrides if key.removeprefix("--config.") not in known] or overrides
        choices = list(dict.fromkeys([*known, *(key for key, _ in flat(plain(default_config())))]))
        key = unknown[0].removeprefix("--config.")
        raise ConfigError(f"{unknown[0]}: the config has no such key: {nearest(key, choices)}") from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    except OSError as error:  # how config_flags reports an exception in a recipe
        raise ConfigError(f"the recipe {path} does not run: {_last_line(error)}") from error
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is not a flag: write --config.key=value to change a key of the config")
    if not values["workdir"].value:
        raise ConfigError("--workdir=DIR is missing: name the folder that the run writes to")
    joining: dict[str, Any] = {name: values[name].value for name in ("coordinator", "processes", "process")}
    return Command(config, values["workdir"].value, **joining)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    run_command(main)
