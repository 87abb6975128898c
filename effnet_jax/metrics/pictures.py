"""Pictures of an evaluation, as PNG files: the confusion matrix and the reliability curve."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from effnet_jax.metrics.answers import Answers
from effnet_jax.metrics.calibration import Reliability
from effnet_jax.metrics.figures import confusion_matrix

_NAMED = 120  # classes whose names are written along the axes
_CELLS = 1500  # along a side, at most


def draw_confusions(answers: Answers, class_names: Sequence[str]) -> bytes:
    """Draws which classes are taken for which, as shares of each right class.

    Args:
      answers: of a model. Where its classes are more than a picture has room for, neighbours share a cell.
      class_names: of the model.
    """
    fold = -(-answers.classes // _CELLS)
    matrix = confusion_matrix(answers, fold)
    count = len(matrix)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    named = count <= _NAMED
    together = f" (by {fold} classes)" if fold > 1 else ""
    side = float(np.clip(0.14 * count + 2, 5, 16))
    figure, axes = _figure(side, side)
    # The square root shows a confusion of 1 % beside a diagonal of 90 %.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel(f"answer{together}")
    axes.set_ylabel(f"right class{together}")
    if named:
        size = float(np.clip(500 / max(count, 1), 4.5, 9))
        axes.set_xticks(range(count), class_names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), class_names, fontsize=size, parse_math=False)  # a $ in a name is a dollar
    if count <= 20:
        for row in range(count):
            for column in range(count):
                if matrix[row, column]:
                    dark = shares[row, column] > 0.3
                    axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7,
                              color="white" if dark else "black")  # fmt: skip
    bar = figure.colorbar(image, ax=axes, fraction=0.04, ticks=np.sqrt([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]))
    bar.ax.set_yticklabels(["0 %", "1 %", "5 %", "10 %", "25 %", "50 %", "100 %"])
    bar.set_label("of the right class")
    return _png(figure)


def draw_reliability(found: Reliability) -> bytes:
    """Draws accuracy by confidence, with the number of examples below."""
    figure, axes = _figure(5, 5.4)
    there = found.count > 0
    middles = (found.edges[:-1] + found.edges[1:]) / 2
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot(found.confidence[there], found.accuracy[there], marker="o", markersize=4)
    axes.bar(middles, 0.25 * found.count / max(found.count.max(), 1), width=0.8 / len(middles), color="0.85", zorder=0)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence (grey: number of images)")
    axes.set_ylabel("accuracy")
    axes.set_title(f"expected calibration error {100 * found.ece:.2f} %", fontsize=10)
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
