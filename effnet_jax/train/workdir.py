"""The run dir before a run: free, to be resumed, finished, or somebody else's."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from effnet_jax.errors import EffnetError, RunError
from effnet_jax.train.config import difference, to_json
from effnet_jax.train.report import write_json
from effnet_jax.weights.metadata import current_versions
from effnet_jax.weights.store import wait_for_all

CONFIG, SUMMARY, CHECKPOINTS = "config.json", "summary.json", "checkpoints"


def check_workdir(workdir: str | Path, config: Any) -> dict[str, Any] | None:
    """Checks that a config may run in a folder.

    Args:
      workdir: the run dir; need not exist.
      config: checked.

    Returns:
      The summary of a run that finished there with this config; None where there is something to do.

    Raises:
      RunError: the folder holds a run of another config (the message has the difference), or something else.
    """
    workdir = Path(workdir)
    if not workdir.exists():
        return None
    if not workdir.is_dir():
        raise RunError(f"{workdir} is a file: give --workdir a folder")
    if not (workdir / CONFIG).exists():
        if any(workdir.iterdir()):
            raise RunError(f"{workdir} exists and is not a run dir (it has no {CONFIG}): give another --workdir")
        return None
    lines = difference(_read_json(workdir / CONFIG), to_json(config))
    if lines:
        shown = "\n  ".join(lines[:20])
        raise RunError(
            f"{workdir} holds a run of another config:\n  {shown}\ngive another --workdir, or the old config to resume"
        )
    return _read_json(workdir / SUMMARY) if (workdir / SUMMARY).exists() else None


def has_checkpoints(workdir: str | Path) -> bool:
    """Whether an earlier attempt saved something to go on from."""
    folder = Path(workdir) / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


@contextlib.contextmanager
def claim_workdir(workdir: str | Path, config: Any) -> Iterator[None]:
    """Makes the run dir, with its `config.json`: on the first process, once all processes have checked the folder.

    Where a mistake of the user, such as a damaged image, ends the block of a new run before its first checkpoint,
    nothing is left behind. A run that diverges (`RunError`) keeps its figures.
    """
    workdir = Path(workdir)
    wait_for_all("run dir checked")
    first = jax.process_index() == 0
    existed = workdir.exists()
    new = not (workdir / CONFIG).exists()
    try:
        if first:
            os.makedirs(workdir, exist_ok=True)
            if new:
                write_json(workdir / CONFIG, to_json(config))
        wait_for_all("run dir claimed")
        yield
    except (EffnetError, OSError) as error:
        if first and new and not isinstance(error, RunError) and not has_checkpoints(workdir):
            shutil.rmtree(workdir, ignore_errors=True)
            if existed:
                workdir.mkdir(exist_ok=True)
        raise


def provenance() -> dict[str, Any]:
    """Returns where figures come from: versions, commit of the code (where it is a git checkout), machine."""
    device = jax.devices()[0]
    return {
        "versions": current_versions(),
        "commit": _commit(),
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "device": device.device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def _commit() -> str | None:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}): give another --workdir") from None
