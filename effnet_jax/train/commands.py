"""Commands that a user may copy into a shell."""

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from effnet_jax.data.sources.base import Source


def command(name: str, *arguments: Any) -> str:
    """Returns `python -m effnet_jax.NAME ARGUMENT…` with this Python, quoted for a shell."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), "-m", f"effnet_jax.{name}", *map(str, arguments)])


def example_image(source: Source) -> str:
    """Returns the path of one image of a source, of its middle class; empty where its images are no files."""
    indices = list(range(len(source)))
    if source.labels is not None:
        indices = np.flatnonzero(np.asarray(source.labels) == len(source.class_names) // 2).tolist() or indices
    path = source.example_id(indices[len(indices) // 2])
    return path if Path(path).is_file() else ""
