"""What a run tells its reader: lines, the table of a phase, a progress bar. Files are the log's business."""

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from effnet_jax.hosts import is_first, who
from effnet_jax.metrics.figures import percent
from effnet_jax.train.meter import Meter

LONG_WAIT = 0.1  # share of the time that is worth a word


class _Console(Console):
    """A console whose reader may go away, as `head` does: that is no reason to end a run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit


class Counting:
    """Says how far something is that takes more than two seconds: on a terminal in one line, else now and then."""

    def __init__(self, what: str) -> None:
        self._what, self._began, self._next = what, time.monotonic(), 2.0

    def __call__(self, number: int) -> None:
        """Hears how far it is."""
        taken = time.monotonic() - self._began
        if taken > self._next and is_first():
            alone = sys.stderr.isatty()
            self._next = taken + 0.2 if alone else 3 * taken
            print(f"{self._what}: {number:,} …", end="\r" if alone else "\n", file=sys.stderr, flush=True)


class Screen:
    """The console of a run. On processes other than the first it is silent."""

    def __init__(self, *, active: bool = True) -> None:
        self._active = active
        self._console = _Console(quiet=not active, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        with contextlib.suppress(OSError):  # such as the full disk of a log that it is redirected to
            self._console.print(text, markup=False)

    def advise(self, sentences: Sequence[str]) -> None:
        """Prints advice."""
        for sentence in sentences:
            self.say(f"advice: {sentence}")

    def show(self, table: Table) -> None:
        """Prints a table."""
        with contextlib.suppress(OSError):
            self._console.print(table)

    def end_epoch(
        self, phase: str, epoch: tuple[int, int], results: Mapping[str, Mapping[str, float]], meter: Meter, end: int
    ) -> None:
        """Prints the line of an epoch.

        Args:
          phase: its name.
          epoch: number of the epoch in its phase, and how many there are.
          results: figures by split.
          meter: of the phase.
          end: the step at which the phase ends.
        """
        shown = "  ".join(
            f"{split.replace('_ema', ' (EMA)')} {percent(figures['accuracy'])} (loss {figures['loss']:.3f})"
            for split, figures in results.items()
        )
        speed = f"  {meter.images_per_second:.0f} images/s" if meter.images_per_second else ""
        if meter.input_wait > LONG_WAIT:
            speed += f"  waiting {percent(meter.input_wait, 0)} for images"
        self.say(f"{phase} {epoch[0]}/{epoch[1]}  {shown}{speed}  {meter.time_left(end)}".rstrip())

    def start_bar(self, name: str, total: int, done: int = 0) -> None:
        """Starts a progress bar, in a terminal."""
        self.end_bar()
        if self._active and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(name, total=total, completed=done, figures="")
            self._bar.start()

    def advance(self, done: int, figures: str = "") -> None:
        """Moves the progress bar."""
        if self._bar:
            self._bar.update(self._task, completed=done, figures=figures)

    def end_bar(self) -> None:
        """Takes the progress bar away."""
        if self._bar:
            self._bar.stop()
            self._bar = None


def phase_table(name: str, rows: Sequence[Mapping[str, Any]], factors: Mapping[str, float]) -> Table:
    """Makes the table of a phase: unit, parameters, trained, learning-rate factor, batch norm.

    Args:
      name: of the phase.
      rows: the plan's table.
      factors: learning-rate factor of each trained unit.
    """
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


def slowest_input(waits: Sequence[float]) -> str:
    """Says which of several processes keeps the others waiting, since it waits for its images; nothing if none does.

    Args:
      waits: shares of the time, by process.
    """
    slowest = max(range(len(waits)), key=waits.__getitem__)
    others = [wait for process, wait in enumerate(waits) if process != slowest]
    if not others or waits[slowest] <= LONG_WAIT:
        return ""
    share, most = percent(waits[slowest], 0), percent(max(others), 0)
    return f"{who(slowest)} waits {share} for its images, the others up to {most}"
