"""Runs of the real command in processes of their own: started, killed, and compared with one another."""

import dataclasses
import json
import os
import socket
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event

from effnet_jax import files
from effnet_jax.train.rundir.checkpoints import CHECKPOINTS, list_steps
from effnet_jax.train.rundir.snapshot import checksums, read_checkpoint
from effnet_jax.weights.store import read_metadata

# What an attempt takes and where it ran; all other figures are the same however often a run was stopped.
OF_THE_ATTEMPT = ("seconds", "attempts", "provenance", "resumed_after_step", "first_step")
TIMES = ("images_per_second", "images_per_second_per_chip", "input_wait")  # of a row


@dataclasses.dataclass
class Process:
    """One process of a run and the file that it prints to."""

    process: subprocess.Popen
    output: Path

    def text(self) -> str:
        return self.output.read_text(errors="replace")


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a process with so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "COLUMNS": "200"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(
    recipe: Path | str,
    workdir: Any,
    *,
    processes: int = 1,
    devices: int = 1,
    flags: Any = (),
    folders: dict[int, Path] | None = None,
    environments: dict[int, dict[str, str]] | None = None,
    group: bool = False,
) -> list[Process]:
    """Starts `python -m effnet_jax.train` on as many processes, each with so many devices.

    Args:
      recipe: the file, with ":ARGUMENT" if it takes one.
      workdir: the run dir.
      processes: how many.
      devices: of each.
      flags: further ones; one list for all processes, or {process: list}.
      folders: where a process runs, if not in the recipe's folder.
      environments: what a process has besides in its environment.
      group: whether each is the leader of a process group, as a terminal's foreground job is.
    """
    port = free_port()
    folder = Path(str(recipe).partition(":")[0]).parent
    started = []
    for number in range(processes):
        own = flags.get(number, []) if isinstance(flags, dict) else list(flags)
        command = [sys.executable, "-m", "effnet_jax.train", f"--config={recipe}", f"--workdir={workdir}", *own]
        if processes > 1:
            command += [f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={number}"]
        started.append(
            start_command(
                command,
                folder,
                devices=devices,
                cwd=(folders or {}).get(number),
                variables=(environments or {}).get(number, {}),
                group=group,
            )
        )
    return started


def start_command(
    command: list[str],
    folder: Path,
    *,
    devices: int = 1,
    cwd: Path | None = None,
    variables: dict[str, str] | None = None,
    group: bool = False,
) -> Process:
    """Starts one process.

    Args:
      command: with its arguments.
      folder: where it runs, unless in `cwd`, and where the file is that it prints to.
      devices: that it has.
      cwd: where it runs instead.
      variables: what it has besides in its environment.
      group: whether it is the leader of a process group.
    """
    output = folder / f"process.{uuid.uuid4().hex[:8]}.log"
    with open(output, "w") as file:
        process = subprocess.Popen(
            command,
            env=environment(devices) | (variables or {}),
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd or folder,
            process_group=0 if group else None,
        )
    return Process(process, output)


def finish(started: list[Process], timeout: float = 600) -> list[int]:
    """Waits for all processes. Returns their exit statuses."""
    try:
        return [one.process.wait(timeout) for one in started]
    finally:
        kill(started)


def kill(started: list[Process]) -> None:
    """SIGKILLs what still runs."""
    for one in started:
        one.process.kill()
        one.process.wait()


def wait_for(one: Process, text: str, *, timeout: float = 240) -> None:
    """Waits until a process has printed a text."""
    until = time.monotonic() + timeout
    while text not in one.text():
        assert time.monotonic() < until and one.process.poll() is None, one.text()[-3000:]
        time.sleep(0.05)


def run(recipe: Path | str, workdir: Any, **options: Any) -> list[Process]:
    """Runs to the end, which must be a good one."""
    started = start(recipe, workdir, **options)
    statuses = finish(started)
    assert statuses == [0] * len(started), "\n".join(one.text()[-3000:] for one in started)
    return started


def outcome(workdir: Path) -> dict[str, Any]:
    """Everything that a finished run has come to: equal, to the bit, for equal runs."""
    summary = json.loads((workdir / "summary.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    step = list_steps(files.as_path(workdir))[-1]
    record, leaves = read_checkpoint(files.as_path(workdir) / CHECKPOINTS / str(step))
    return {
        "summary": {key: value for key, value in summary.items() if key not in OF_THE_ATTEMPT},
        "rows": [timeless(row) for row in rows],
        "step": step,
        "state": checksums(leaves),
        "weights": {
            name: read_metadata(workdir / name).checksums
            for name in ("weights", "weights_ema")
            if (workdir / name).exists()
        },
        "board": timeless_points(board(workdir)),
    }


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what its attempt took."""
    return {key: value for key, value in row.items() if key not in TIMES}


def timeless_points(points: list[tuple[int, str, float]]) -> list[tuple[int, str, float]]:
    """The points of TensorBoard that no clock has a part in."""
    return [point for point in points if point[1].rpartition("/")[2] not in TIMES]


def board(workdir: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of everything in TensorBoard's files, as a reader of TFRecords finds it."""
    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event = Event.FromString(data[start + 12 : start + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            start += 16 + length
    return found


def board_of(rows: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    """What TensorBoard must show of rows, to float32."""
    return [
        (row["step"], f"{row['split']}/{key}", struct.unpack("<f", struct.pack("<f", value))[0])
        for row in rows
        for key, value in row.items()
        if isinstance(value, float) and key != "epoch"
    ]
