"""The tables of a compiled recipe."""

import sys
from collections.abc import Mapping
from typing import Any

STEPS = (("train", "train", "batch_size"), ("evaluate", "evaluate", "eval_batch_size"))
_HEADINGS = (
    "batch", "GiB\na chip", "fits", "GFLOP\nan image", "HBM MB\nan image", "XLA MB\nan image", "collec-\ntives",
    "their MB\nan image", "host", "bound by", "ms", "images/s\nat most", "images/s\na chip",
)  # fmt: skip


def print_result(result: Mapping[str, Any]) -> None:
    """Prints what each step needs and does, and what moves most in each training step."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    title = f"{result['topology']}: {result['chips']} chips"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), collapse_padding=True)
    for heading in ("phase", "step"):
        table.add_column(heading, no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for phase in result["phases"]:
        for key, step, batch in STEPS:
            table.add_row(phase["name"], step, *_cells(phase[key], phase[batch]))
    console.print(table)
    for phase in result["phases"]:
        if phase["train"]["dearest"]:
            console.print(_dearest(phase))


def _cells(step: Mapping[str, Any], batch_size: int) -> list[str]:
    memory = [f"{batch_size:,}", f"{step['bytes_per_chip'] / 2**30:.2f}", "yes" if step["fits"] else "no"]
    if step["bound"] is None:
        return [*memory, *("–" for _ in _HEADINGS[3:])]
    return [
        *memory,
        f"{step['flops_per_image'] / 1e9:.2f}",
        f"{step['hbm_bytes_per_image'] / 1e6:.1f}",
        f"{step['bytes_accessed_per_image'] / 1e6:.1f}",
        f"{step['collectives']}",
        f"{step['collective_bytes_per_image'] / 1e6:.2f}",
        f"{step['host_transfers']}",
        step["bound"],
        f"{step['step_seconds'] * 1e3:.2f}",
        f"{step['images_per_second']:,.0f}",
        f"{step['images_per_second_per_chip']:,.0f}",
    ]


def _dearest(phase: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    title = f"{phase['name']}: what moves most in the training step"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), collapse_padding=True)
    for heading in ("HBM MB an image", "unit", "", "instruction"):
        table.add_column(heading, justify="right" if "MB" in heading else "left", no_wrap=True)
    for row in phase["train"]["dearest"]:
        table.add_row(f"{row['mb_per_image']:.2f}", row["unit"], row["direction"], row["instruction"])
    return table
