"""A table of a variant's units: output shapes, parameters, multiply-accumulates.

python -m effnet_jax.summary b0 [--resolution N] [--num_classes N]
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

from effnet_jax.errors import EffnetError, run_command
from effnet_jax.model.variants import VARIANTS, Block, Variant, get_variant


class Unit(NamedTuple):
    """One row: a unit's output shape without the batch, its parameters and multiply-accumulates for one image."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    statistics: int
    macs: int


def summarise(variant: str, resolution: int = 0, num_classes: int = 1000) -> list[Unit]:
    """Counts a variant's units, from plain arithmetic: no array is made.

    Args:
      variant: name of the architecture.
      resolution: side of the image in pixels; 0: the variant's.
      num_classes: outputs of the classifier.

    Returns:
      One row for each unit. Multiply-accumulates count convolutions and dense layers, squeeze-and-excite included, as
      the papers do; batch norm and activations are left out.

    Raises:
      VariantError: no such variant.
      EffnetError: a resolution or a number of classes below 1.
    """
    architecture = get_variant(variant)
    if resolution < 0 or num_classes < 1:
        raise EffnetError(
            f"resolution={resolution}, num_classes={num_classes}: both count from 1 up (resolution 0: own)"
        )
    side = -(-(resolution or architecture.resolution) // 2)
    stem = architecture.stem_filters
    rows = [Unit("stem", (side, side, stem), 27 * stem + 2 * stem, 2 * stem, 27 * stem * side * side)]
    for block in architecture.blocks:
        row = _block(block, side)
        rows.append(row)
        side = row.shape[0]
    return [*rows, *_head(architecture, side, num_classes)]


def _block(block: Block, side: int) -> Unit:
    inner, out = block.expanded_filters, -(-side // block.stride)
    window = block.kernel_size**2
    expand = block.in_filters * inner if block.expand_ratio != 1 else 0
    squeeze = 2 * inner * block.se_filters  # two kernels; their biases come apart
    biases = block.se_filters + inner if block.se_filters else 0
    channels = inner * (2 if expand else 1) + block.out_filters  # of all batch norms
    parameters = expand + window * inner + squeeze + biases + inner * block.out_filters + 2 * channels
    macs = expand * side**2 + (window * inner + inner * block.out_filters) * out**2 + squeeze
    return Unit(block.name, (out, out, block.out_filters), parameters, 2 * channels, macs)


def _head(variant: Variant, side: int, num_classes: int) -> list[Unit]:
    last, top = variant.blocks[-1].out_filters, variant.top_filters
    return [
        Unit("top", (side, side, top), last * top + 2 * top, 2 * top, last * top * side**2),
        Unit("classifier", (num_classes,), top * num_classes + num_classes, 0, top * num_classes),
    ]


def print_summary(rows: Sequence[Unit], title: str) -> None:
    """Prints the rows as a table with totals."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_footer=True)
    parameters, statistics = sum(row.parameters for row in rows), sum(row.statistics for row in rows)
    footers = ("total", "", f"{parameters:,}", f"{statistics:,}", _millions(sum(row.macs for row in rows)))
    for heading, footer in zip(("unit", "output", "parameters", "statistics", "MACs"), footers, strict=True):
        table.add_column(heading, footer, justify="left" if heading in ("unit", "output") else "right", no_wrap=True)
    for row in rows:
        shape = "×".join(map(str, row.shape))
        table.add_row(row.name, shape, f"{row.parameters:,}", f"{row.statistics:,}", _millions(row.macs))
    # A file or a pipe gets whole lines too.
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def _millions(macs: int) -> str:
    return f"{macs / 1e6:,.1f} M"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m effnet_jax.summary", description=__doc__.splitlines()[0])
    parser.add_argument("variant", help="one of " + ", ".join(VARIANTS))
    parser.add_argument(
        "--resolution", type=int, default=0, help="side of the image in pixels (default: the variant's)"
    )
    parser.add_argument("--num_classes", type=int, default=1000, help="outputs of the classifier (default: 1000)")
    arguments = parser.parse_args()
    rows = summarise(arguments.variant, arguments.resolution, arguments.num_classes)
    resolution = arguments.resolution or get_variant(arguments.variant).resolution
    print_summary(rows, f"EfficientNet {arguments.variant} at {resolution}×{resolution}")


if __name__ == "__main__":
    run_command(main)
