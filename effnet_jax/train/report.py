"""What a run tells: `metrics.jsonl`, TensorBoard, the table of a phase, a progress bar, and lines to read."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import SummaryWriter

from effnet_jax.train.curves import draw_curves, read_rows
from effnet_jax.train.meter import Meter

_SECONDS_BETWEEN_DRAWINGS = 60.0


class Report:
    """The log of a run dir. On processes other than the first it is silent and writes nothing."""

    def __init__(self, workdir: str | Path, *, step: int = 0, active: bool = True, title: str = "") -> None:
        """Opens the log.

        Args:
          workdir: the run dir.
          step: steps done; what an earlier, longer attempt logged after it is dropped, since it will be logged again.
          active: whether this process tells anything.
          title: of the picture.
        """
        self.workdir = Path(workdir)
        self.active = active
        self.title = title
        self.console = Console(quiet=not active, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._drawn = time.monotonic()
        if active:
            self._metrics = self.workdir / "metrics.jsonl"
            _keep_rows(self._metrics, step)
            self._file = open(self._metrics, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
            self._board = SummaryWriter(str(self.workdir), purge_step=step + 1 if step else None)

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        self.console.print(text, markup=False)

    def advise(self, sentences: Sequence[str]) -> None:
        """Prints advice."""
        for sentence in sentences:
            self.say(f"advice: {sentence}")

    def record(self, **row: Any) -> None:
        """Writes one object to `metrics.jsonl`, and its figures to TensorBoard under the name of its split."""
        if not self.active:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for key, value in row.items():
            if isinstance(value, float) and key != "epoch":
                self._board.add_scalar(f"{row['split']}/{key}", value, row["step"])

    def start_run(self, config: Mapping[str, Any], sources: Mapping[str, Any], origin: str) -> None:
        """Prints what is about to be trained, on what."""
        images = ", ".join(f"{len(source):,} {split}" for split, source in sources.items())
        classes = len(sources["train"].class_names)
        self.say(f"{self.title}: {images} images, {classes} classes")
        device = jax.devices()[0].device_kind
        self.say(f"{origin}; {config['dtype']} on {jax.device_count()} × {device} ({config['partition']['mode']})")

    def start_phase(self, name: str, rows: Sequence[Mapping[str, Any]], factors: Mapping[str, float]) -> None:
        """Prints the table of a phase.

        Args:
          name: of the phase.
          rows: the plan's table.
          factors: learning-rate factor of each trained unit.
        """
        self.console.print(phase_table(name, rows, factors))

    def start_bar(self, name: str, total: int, done: int = 0) -> None:
        """Starts a progress bar, in a terminal."""
        self.end_bar()
        if self.active and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task(name, total=total, completed=done, figures="")
            self._bar.start()

    def advance(self, done: int, figures: str) -> None:
        """Moves the progress bar."""
        if self._bar:
            self._bar.update(self._task, completed=done, figures=figures)

    def end_epoch(
        self, phase: str, epoch: int, epochs: int, results: Mapping[str, Mapping[str, float]], meter: Meter, end: int
    ) -> None:
        """Prints the line of an epoch."""
        shown = "  ".join(
            f"{split.replace('_ema', ' (EMA)')} {percent(figures['accuracy'])} (loss {figures['loss']:.3f})"
            for split, figures in results.items()
        )
        speed = f"  {meter.images_per_second:.0f} images/s" if meter.images_per_second else ""
        self.say(f"{phase} {epoch}/{epochs}  {shown}{speed}  {meter.time_left(end)}".rstrip())

    def end_bar(self) -> None:
        """Takes the progress bar away."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def draw(self, *, now: bool = False) -> None:
        """Draws `curves.png`, at most once a minute unless `now`."""
        if self.active and (now or time.monotonic() - self._drawn > _SECONDS_BETWEEN_DRAWINGS):
            draw_curves(read_rows(self._metrics), self.workdir / "curves.png", title=self.title)
            self._drawn = time.monotonic()

    def close(self) -> None:
        """Closes the files."""
        self.end_bar()
        if self.active:
            self._file.close()
            self._board.close()


def phase_table(name: str, rows: Sequence[Mapping[str, Any]], factors: Mapping[str, float]) -> Table:
    """Makes the table of a phase: unit, parameters, trained, learning-rate factor, batch norm."""
    table = Table(title=f"phase {name}", title_justify="left", title_style="bold", show_footer=True)
    total = sum(row["parameters"] for row in rows)
    trained = sum(row["trained"] for row in rows)
    table.add_column("unit", footer="total")
    table.add_column("parameters", footer=f"{total:,}", justify="right")
    table.add_column("trained", footer=f"{trained:,}", justify="right")
    table.add_column("rate factor", justify="right")
    table.add_column("batch norm")
    for row in rows:
        factor = f"{factors[row['unit']]:.3g}" if row["unit"] in factors else ""
        style = "" if row["trained"] else "dim"
        count = f"{row['trained']:,}" if row["trained"] else "-"
        table.add_row(row["unit"], f"{row['parameters']:,}", count, factor, row["batch_norm"], style=style)
    return table


def percent(value: float) -> str:
    """Returns a share as readers want it: `78.3 %`."""
    return f"{100 * value:.1f} %"


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file beside its place and renames it."""
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
    os.replace(partial, path)


def _keep_rows(path: Path, step: int) -> None:
    """Drops the rows after a step, and a last line that a kill cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        # A resume at the end of a phase evaluates the test split again.
        if row["step"] < step or (row["step"] == step and not row["split"].startswith("test")):
            kept.append(line)
    partial = Path(f"{path}.partial")
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(partial, path)
