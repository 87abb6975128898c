"""Short Python scripts in processes of their own, which tests start, kill and wait for."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def start(script: str, *arguments: object) -> subprocess.Popen:
    """Starts a Python process that has `files`, `locks`, `sys` and `time`."""
    script = f"import sys, time\nfrom effnet_jax import files, locks\n{script}"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(script: str, *arguments: object) -> str:
    """Runs such a process to its end and returns what it printed."""
    process = start(script, *arguments)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate(timeout=60)
