"""Charts as SVG in the page: curves of a run, and reliability. Colours are the style sheet's."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from effnet_jax.metrics.calibration import Reliability
from effnet_jax.metrics.figures import percent
from effnet_jax.report.html import Html, join, tag

WIDTH, HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 26, 34
_POINTS = 400  # of a line
LINES = ("train", "validation", "validation_ema", "test")
NAMES = {"train": "train", "validation": "validation", "validation_ema": "validation (EMA)", "test": "test"}


def curves(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Draws loss and accuracy over epochs, with the phases; nothing where there are no rows to draw."""
    charts = [
        _curve(rows, "accuracy", 100.0, "accuracy (%)"),
        _curve(rows, "loss", 1.0, "loss (nats)"),
    ]
    shown = [name for name in LINES if any(row["split"] == name for row in rows)]
    if not shown:
        return tag("p", "This run has written no figures of epochs.")
    legend = tag("p", *(tag("span", NAMES[name], class_=f"key {name}") for name in shown), class_="legend")
    return join([legend, tag("div", *charts, class_="charts")])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round numbers from `low` to `high`, about `count` of them."""
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _curve(rows: Sequence[Mapping[str, Any]], key: str, scale: float, title: str) -> Html:
    lines = {
        split: [(row["epoch"], scale * row[key]) for row in rows if row["split"] == split and row.get(key) is not None]
        for split in LINES
    }
    values = [value for points in lines.values() for _, value in points]
    last = max((row["epoch"] for row in rows), default=1.0) or 1.0
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = min(low, max(0.0, high - 1e-3)) if scale == 100.0 else 0.0
    low, high = max(0.0, low - 0.05 * (high - low)), high + 0.05 * (high - low) + 1e-6
    if scale == 100.0:
        high = min(high, 100.0)

    def x(epoch: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * epoch / last, 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / max(high - low, 1e-9), 1)

    drawn: list[Html] = []
    for number, (name, start, stop) in enumerate(phase_spans(rows)):
        if number % 2:
            drawn.append(tag("rect", x=x(start), y=_TOP, width=round(x(stop) - x(start), 1),
                             height=HEIGHT - _TOP - _BOTTOM, class_="band"))  # fmt: skip
        if x(stop) - x(start) > 7 * len(name):
            drawn.append(tag("text", name, x=(x(start) + x(stop)) / 2, y=_TOP - 8, class_="middle"))
    for value in ticks(low, high):
        drawn.append(tag("path", d=f"M{_LEFT} {y(value)}H{WIDTH - _RIGHT}", class_="rule"))
        drawn.append(tag("text", f"{value:g}", x=_LEFT - 6, y=y(value) + 4, class_="end"))
    for epoch in ticks(0, last, 8):
        drawn.append(tag("text", f"{epoch:g}", x=x(epoch), y=HEIGHT - _BOTTOM + 16, class_="middle"))
    drawn.append(tag("text", "epoch", x=WIDTH - _RIGHT, y=HEIGHT - 3, class_="end"))
    for split, points in lines.items():
        drawn += _line(split, points[:: max(1, len(points) // _POINTS)], x, y)
    words = f"{title} by epoch"
    figure = tag("svg", tag("title", words), *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    return tag("figure", tag("figcaption", title), figure, class_="chart")


def _line(split: str, points: Sequence[tuple[float, float]], x: Any, y: Any) -> list[Html]:
    drawn = []
    if split != "test" and len(points) > 1:
        path = "M" + "L".join(f"{x(epoch)} {y(value)}" for epoch, value in points)
        drawn.append(tag("path", d=path, class_=f"line {split}"))
    if split == "test" or len(points) <= 80:
        for epoch, value in points:
            told = tag("title", f"{NAMES[split]}, epoch {epoch:.3g}: {value:.4g}")
            size = 5 if split == "test" else 3
            drawn.append(tag("circle", told, cx=x(epoch), cy=y(value), r=size, class_=f"dot {split}"))
    return drawn


def phase_spans(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Returns (name, first epoch, last epoch) of each phase, in order."""
    spans: dict[str, tuple[float, float]] = {}
    end = 0.0
    for row in rows:
        start = spans.get(row["phase"], (end, end))[0]
        end = max(end, row["epoch"])
        spans[row["phase"]] = (start, end)
    return [(name, start, stop) for name, (start, stop) in spans.items()]


def reliability_chart(found: Reliability) -> Html:
    """Draws accuracy by confidence, with the number of examples as bars from below."""
    side, margin = 260, 38
    there = np.flatnonzero(found.count)

    def place(share: float) -> float:
        return round(margin + (side - margin - 8) * share, 1)

    def height(share: float) -> float:
        return round(side - place(share), 1)

    most, drawn = max(int(found.count.max()), 1), []
    for index in there.tolist():
        count, left, right = int(found.count[index]), found.edges[index], found.edges[index + 1]
        told = tag(
            "title",
            f"confidence {percent(left, 0)} to {percent(right, 0)}: {count:,} images, mean confidence "
            f"{percent(found.confidence[index])}, accuracy {percent(found.accuracy[index])}",
        )
        top = height(0.25 * count / most)
        drawn.append(tag("rect", told, x=place(left) + 1, y=top, width=round(place(right) - place(left) - 2, 1),
                         height=round(height(0) - top, 1), class_="count"))  # fmt: skip
    drawn.append(tag("path", d=f"M{place(0)} {height(0)}L{place(1)} {height(1)}", class_="rule"))
    points = [(place(found.confidence[i]), height(found.accuracy[i])) for i in there.tolist()]
    if points:
        drawn.append(tag("path", d="M" + "L".join(f"{a} {b}" for a, b in points), class_="line validation"))
        drawn += [tag("circle", cx=a, cy=b, r=3, class_="dot validation") for a, b in points]
    for share in (0.0, 0.5, 1.0):
        drawn.append(tag("text", f"{100 * share:.0f}", x=place(share), y=side - margin + 16,
                         class_="end" if share == 1 else "middle"))  # fmt: skip
        drawn.append(tag("text", f"{100 * share:.0f}", x=margin - 6, y=height(share) + 4, class_="end"))
    drawn.append(tag("text", "confidence (%), bars: images", x=place(0.5), y=side - 4, class_="middle"))
    told = tag("title", "accuracy by confidence")
    figure = tag("svg", told, *drawn, viewBox=f"0 0 {side} {side}", role="img")
    return tag("figure", tag("figcaption", "accuracy (%) by confidence"), figure, class_="chart small")
