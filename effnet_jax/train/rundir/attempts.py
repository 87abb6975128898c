"""`attempts.jsonl`: what each attempt at a run ran on. A line is added at each start, and never changed."""

import contextlib
import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
from etils import epath

from effnet_jax import files, hosts
from effnet_jax.weights.metadata import current_versions

ATTEMPTS = "attempts.jsonl"


def add_attempt(folder: epath.Path, *, devices: int, **about: Any) -> None:
    """Adds a line for this attempt.

    Args:
      folder: the run dir.
      devices: that it trains on.
      about: what else belongs into it, such as the step that it begins after.
    """
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    log = files.Lines(folder / ATTEMPTS)
    log.append(files.to_json_text({"started": started, **about, **provenance(devices)}))
    log.close()


def read_attempts(folder: epath.Path) -> list[dict[str, Any]]:
    """Returns the attempts so far, in order; none for a run of a version that did not write them."""
    attempts = []
    for line in files.read_lines(folder / ATTEMPTS):
        with contextlib.suppress(ValueError):  # what a crash of the machine left of a line
            attempts.append(json.loads(line))
    return attempts


def provenance(devices: int | None = None) -> dict[str, Any]:
    """Returns where figures come from: versions, commit of the code (where it is a git checkout), machine."""
    return {
        "versions": current_versions(),
        "commit": commit(),
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "device": jax.devices()[0].device_kind,
            "devices": devices or jax.device_count(),
            "processes": hosts.count(),
        },
    }


def commit() -> str | None:
    """Returns the commit of the code, with `-dirty` where it was changed since; None outside a git checkout."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
