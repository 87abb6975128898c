"""`effnet COMMAND …`, which is `python -m effnet_jax.COMMAND …`."""

import importlib
import sys

from effnet_jax.errors import ConfigError, nearest, run_command

COMMANDS = {
    "train": "trains as a recipe says, and resumes",
    "predict": "classifies photographs",
    "evaluate": "measures weights on labelled images",
    "report": "makes the page about a finished run anew",
    "weights": "lists, shows and fetches published weights",
    "port": "makes a weights dir of weights of any kind",
    "export": "writes weights for other programs; makes a weights dir of a run's checkpoint",
    "prepare": "writes a data set as few large files",
    "preview": "draws what the model sees",
    "summary": "prints a variant's units, shapes and parameters",
    "tpu": "compiles a recipe for a slice of TPUs, without one",
}
_PACKAGES = ("train", "predict", "report", "weights", "tpu")  # whose command is their `__main__`


def main() -> int | None:
    """Runs the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        listed = "\n".join(f"  {command:9} {what}" for command, what in COMMANDS.items())
        print(f"usage: effnet COMMAND …\n\n{listed}\n\n`effnet COMMAND --help` says more of each.")
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"there is no command {name!r}: {nearest(name, COMMANDS)}")
    module = importlib.import_module(f"effnet_jax.{name}.__main__" if name in _PACKAGES else f"effnet_jax.{name}")
    sys.argv = [f"effnet {name}", *sys.argv[2:]]
    return module.main()


def entry() -> None:
    """Where the installed command begins."""
    run_command(main)


if __name__ == "__main__":
    entry()
