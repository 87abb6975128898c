"""Commands that a user may copy into a shell."""

import shlex
import sys
from pathlib import Path
from typing import Any


def command(name: str, *arguments: Any) -> str:
    """Returns `python -m effnet_jax.NAME ARGUMENT…` with this Python, quoted for a shell."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), "-m", f"effnet_jax.{name}", *map(str, arguments)])
