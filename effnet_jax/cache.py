"""The user's cache: listings of large folders, compiled programs, published weights."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A place in the cache: below `$EFFNET_JAX_CACHE`, else `effnet_jax` in `$XDG_CACHE_HOME` or `~/.cache`.

    Args:
      parts: of the path below.
    """
    given = os.environ.get("EFFNET_JAX_CACHE")
    base = os.environ.get("XDG_CACHE_HOME", "")  # one that is not from the root is to be ignored, says its standard
    base = base if os.path.isabs(base) else "~/.cache"
    return Path(given or os.path.join(base, "effnet_jax")).expanduser().joinpath(*parts)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Has one process of this machine at a time work at a path, until it ends at most; others say that they wait."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process, which makes {path}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
