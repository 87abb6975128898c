"""The picture of a run: loss and accuracy, train against validation, with its phases marked."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from effnet_jax import files
from effnet_jax.report.charts import phase_spans

# Colours that stay apart for most kinds of colour blindness (Okabe and Ito).
COLOURS = {"train": "#E69F00", "validation": "#0072B2", "validation_ema": "#009E73"}
LABELS = {"train": "train", "validation": "validation", "validation_ema": "validation (EMA)"}


def draw_curves(rows: Sequence[Mapping[str, Any]], path: epath.PathLike, *, title: str = "") -> None:
    """Draws loss and accuracy over epochs.

    Args:
      rows: of `metrics.jsonl`; those with `split` train, validation, validation_ema and test are taken.
      path: of the PNG.
      title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    phases = phase_spans(rows)
    for axes, key, scale in ((loss_axes, "loss", 1.0), (accuracy_axes, "accuracy", 100.0)):
        _draw_phases(axes, phases)
        for split, colour in COLOURS.items():
            points = [(row["epoch"], scale * row[key]) for row in rows if row["split"] == split and _finite(row, key)]
            if points:
                epochs, values = zip(*points, strict=True)
                style = {"marker": "o", "markersize": 3.5} if len(points) < 60 else {}
                axes.plot(epochs, values, color=colour, label=LABELS[split], linewidth=1.8, zorder=3, **style)
        test = [(row["epoch"], scale * row[key]) for row in rows if row["split"] == "test" and _finite(row, key)]
        if test:
            epochs, values = zip(*test, strict=True)
            axes.scatter(epochs, values, marker="*", s=90, color="#222222", label="test", zorder=4)
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    loss_axes.set_ylabel("loss")
    loss_axes.set_ylim(bottom=0)
    accuracy_axes.set_ylabel("accuracy (%)")
    accuracy_axes.legend(frameon=False, loc="lower right")
    if title:
        figure.suptitle(title, fontsize=12)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    files.write_bytes(path, picture.getvalue())


def _finite(row: Mapping[str, Any], key: str) -> bool:
    return row[key] is not None  # what is no number is null in metrics.jsonl


def _draw_phases(axes: Any, phases: Sequence[tuple[str, float, float]]) -> None:
    for number, (name, start, stop) in enumerate(phases):
        if number % 2:
            axes.axvspan(start, stop, color="#f3f3f3", zorder=0, linewidth=0)
        if number:
            axes.axvline(start, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.text(
            (start + stop) / 2, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=9,
            color="#555555",
        )  # fmt: skip
