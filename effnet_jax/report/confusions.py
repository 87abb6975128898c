"""The confusion matrix as a picture that can be read: classes that are mistaken for each other stand together."""

from collections.abc import Sequence

import numpy as np

from effnet_jax.report.html import Html, join, tag

DRAWN = 200  # classes, at most
_CELL = 11  # pixels, so that names of classes can be read
_LETTERS = 22  # of a name along the axes


def order_by_confusion(matrix: np.ndarray) -> np.ndarray:
    """Returns an order of classes in which those that are mistaken for each other are near.

    Groups of classes are joined, the most often confused ones first (mean share over all pairs of their classes), and
    turned so that the classes that meet are the most confused ends.

    Args:
      matrix: counts by right class (rows) and answer (columns), [classes, classes].
    """
    classes = len(matrix)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    alike = shares + shares.T
    np.fill_diagonal(alike, 0)
    groups = [[index] for index in range(classes)]
    near = alike.astype(np.float64).copy()
    sizes = np.ones(classes)
    np.fill_diagonal(near, -1)
    for _ in range(classes - 1):
        first, second = sorted(divmod(int(near.argmax()), classes))
        if near[first, second] <= 0:  # nothing is confused any more: the rest stays in its order
            break
        groups[first] = _joined(groups[first], groups[second], alike)
        merged = (near[first] * sizes[first] + near[second] * sizes[second]) / (sizes[first] + sizes[second])
        gone = near[first] < 0  # itself, and groups that are in others
        near[first] = near[:, first] = np.where(gone | (near[second] < 0), -1, merged)
        near[second] = near[:, second] = -1
        sizes[first] += sizes[second]
        groups[second] = []
    return np.array([index for group in groups for index in group], np.int64)


def _joined(first: list[int], second: list[int], alike: np.ndarray) -> list[int]:
    ways = [(a, b) for a in (first, first[::-1]) for b in (second, second[::-1])]
    left, right = max(ways, key=lambda way: alike[way[0][-1], way[1][0]])
    return left + right


def draw_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> Html:
    """Draws a confusion matrix, of `DRAWN` classes at most.

    Args:
      matrix: counts by right class (rows) and answer (columns), [classes, classes].
      class_names: of them.
    """
    order = order_by_confusion(matrix)
    count = len(order)
    cell = 26 if count <= 24 else _CELL
    size = 12 if count <= 24 else 10
    names = [class_names[index] for index in order]
    margin = round(8 + 0.58 * size * min(_LETTERS, max(map(len, names), default=1)))
    side = margin + cell * count
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    drawn = [
        tag("path", d="".join(f"M{margin} {margin + cell * i}H{side}M{margin + cell * i} {margin}V{side}"
                              for i in range(0, count + 1, 1 if count <= 24 else 5)), class_="rule")
    ]  # fmt: skip
    for place, name in enumerate(names):
        middle = margin + cell * (place + 0.5)
        short = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
        drawn.append(tag("text", short, x=margin - 4, y=middle + 0.35 * size, class_="end"))
        turned = f"translate({middle + 0.35 * size} {margin - 4}) rotate(-90)"
        drawn.append(tag("text", short, transform=turned))
    for row, right in enumerate(order.tolist()):
        for column, answer in enumerate(order.tolist()):
            if number := int(matrix[right, answer]):
                drawn += _cell(number, shares[right, answer], row, column, names, margin, cell, count <= 24)
    figure = tag("svg", tag("title", "confusion matrix: rows are right classes, columns answers"), *drawn,
                 viewBox=f"0 0 {side} {side}", width=side, height=side, role="img", class_="matrix",
                 style=f"font-size:{size}px")  # fmt: skip
    readout = tag(
        "p", "A cell says which class was taken for which: point at it.", class_="readout", aria_live="polite"
    )
    label = "confusion matrix"
    return join([readout, tag("div", figure, class_="scroll whole", tabindex=0, role="region", aria_label=label)])


def _cell(
    number: int, share: float, row: int, column: int, names: Sequence[str], margin: int, cell: int, numbered: bool
) -> list[Html]:
    what = "recognised" if row == column else f"taken for {names[column]}"
    told = tag("title", f"{names[row]} {what}: {number} ({100 * share:.0f} %)")
    # The square root shows a confusion of 1 % beside a diagonal of 90 %.
    strength = round(float(np.sqrt(share)), 2)
    left, top = margin + cell * column, margin + cell * row
    parts = [tag("rect", told, x=left, y=top, width=cell, height=cell, fill_opacity=strength,
                 class_="hit" if row == column else "miss")]  # fmt: skip
    if numbered:
        place = {"x": left + cell / 2, "y": top + cell / 2 + 4}
        parts.append(tag("text", number, **place, class_="middle strong" if strength > 0.6 else "middle"))
    return parts
