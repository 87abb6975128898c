"""Room on a disk, asked for before something large is written: a full disk is then told in one sentence.

Checkpointing libraries find out in the middle of a write, in threads of their own, and print their tracebacks.
"""

import os
import shutil
from pathlib import Path

from effnet_jax.errors import DiskError

_MARGIN = 2**20  # bytes for what lies beside arrays: indexes, metadata, logs


def check_space(path: str | os.PathLike, size: int, what: str) -> None:
    """Checks that a disk has room.

    Args:
      path: what is going to be written; it and its parents need not exist.
      size: bytes of its arrays.
      what: what messages call it.

    Raises:
      DiskError: there is too little room.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size + _MARGIN:
        raise DiskError(
            f"no space left on the disk for {what}: {(size + _MARGIN) / 1e6:.0f} MB are needed in {path}, and "
            f"{free / 1e6:.0f} MB are free; free some, or write elsewhere"
        )
