"""The log of a run dir: `metrics.jsonl`, and TensorBoard's events, which are made from it.

A checkpoint says how many rows were written before it (`Log.count`). A resume keeps so many and writes TensorBoard's
file anew from them, so that neither has a point twice or lacks one, wherever a kill came.
"""

import json
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import google_crc32c
from etils import epath

from effnet_jax import files
from effnet_jax.train.rundir.curves import draw_curves

METRICS, CURVES = "metrics.jsonl", "curves.png"
_EVENTS = "events.out.tfevents"
_SECONDS_BETWEEN_DRAWINGS = 60.0

Row = dict[str, Any]


class Log:
    """The rows that a run writes. On processes other than the first it writes nothing.

    Attributes:
      count: rows so far, those of earlier attempts too.
      accuracies: validation accuracy by step.
    """

    def __init__(self, folder: epath.Path, kept: Sequence[Row] = (), *, active: bool = True, title: str = "") -> None:
        """Opens the log.

        Args:
          folder: the run dir.
          kept: rows of earlier attempts; what follows them in the file is dropped, since it will be logged again.
          active: whether this process writes.
          title: of the picture.
        """
        self.count = len(kept)
        self.accuracies = {row["step"]: row["accuracy"] for row in kept if row["split"] == "validation"}
        self._folder, self._active, self._title = folder, active, title
        self._drawn = time.monotonic()
        if active:
            files.keep_lines(folder / METRICS, len(kept))
            self._metrics = files.Lines(folder / METRICS)
            self._events = _open_events(folder, kept)

    def record(self, **row: Any) -> None:
        """Writes a row to `metrics.jsonl`, and its figures to TensorBoard under the name of its split."""
        if self._active:
            self._events.append(_event_of(row))  # made anew from the rows at the next start
            self._metrics.append(files.to_json_text(row))
        self.count += 1  # a row that could not be written is none
        if row["split"] == "validation":
            self.accuracies[row["step"]] = row["accuracy"]

    def flush(self) -> None:
        """Brings the rows to the disk or the bucket, so that no checkpoint counts a row that a crash could lose."""
        if self._active:
            self._metrics.flush()
            self._events.flush()

    def draw(self, *, now: bool = False) -> str | None:
        """Draws `curves.png`, at most once a minute unless `now`.

        Returns:
          Why it failed, if it did: a picture is no reason to end a run.
        """
        if not self._active or not (now or time.monotonic() - self._drawn > _SECONDS_BETWEEN_DRAWINGS):
            return None
        self._drawn = time.monotonic()
        try:
            self._metrics.flush()
            draw_curves(read_rows(self._folder), self._folder / CURVES, title=self._title)
        except Exception as error:  # whatever a plotting library raises, a full disk too
            return f"{CURVES} was not drawn: {type(error).__name__}: {error}"
        return None

    def close(self) -> None:
        """Closes the files."""
        if self._active:
            self._metrics.close()
            self._events.close()


def read_rows(folder: epath.PathLike) -> list[Row]:
    """Returns the rows of a run dir, up to the first line that is none: a kill or a crash of the machine left it."""
    rows = []
    for line in files.read_lines(files.as_path(folder) / METRICS):
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def rows_until(rows: Iterable[Row], step: int) -> list[Row]:
    """Returns the rows that were written up to a step, for checkpoints of a format that does not count them.

    There a resume at the end of a phase evaluates the test split again.
    """
    return [row for row in rows if row["step"] < step or (row["step"] == step and not row["split"].startswith("test"))]


def _open_events(folder: epath.Path, rows: Iterable[Row]) -> files.Lines:
    """Writes TensorBoard's file anew, under a later name than those before, which are then removed."""
    old = [name for name in files.visible(folder) if name.startswith(_EVENTS)]
    path = folder / f"{_EVENTS}.{time.time_ns() // 10**6}.{socket.gethostname()}"
    head = _framed_event(file_version="brain.Event:2")
    files.write_bytes(path, b"".join([head, *map(_event_of, rows)]))
    for name in old:
        files.remove(folder / name)
    return files.Lines(path, binary=True)


def _event_of(row: Mapping[str, Any]) -> bytes:
    values = [
        {"tag": f"{row['split']}/{key}", "simple_value": value}
        for key, value in row.items()
        if isinstance(value, float) and key != "epoch"
    ]
    return _framed_event(step=row["step"], summary={"value": values})


def _framed_event(**values: Any) -> bytes:
    from tensorboardX.proto.event_pb2 import Event  # a quarter of what a run would import before its flags are read

    return _framed(Event(wall_time=time.time(), **values).SerializeToString())


def _framed(record: bytes) -> bytes:
    """A record as TFRecord files have it: length, its checksum, the bytes, their checksum."""
    length = struct.pack("<Q", len(record))
    return length + _masked_checksum(length) + record + _masked_checksum(record)


def _masked_checksum(data: bytes) -> bytes:
    checksum = google_crc32c.value(data)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)
