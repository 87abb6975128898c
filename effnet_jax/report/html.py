"""HTML as text that is escaped once: building blocks of the page."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

# Surrogates of names that are no UTF-8, and characters that HTML has no place for.
_NO_TEXT = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})
_VOID = {"img", "meta", "br"}


class Html(str):
    """Text that is HTML already, which nothing escapes again."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """Returns any value as text of a page: `<`, `&` and quotes escaped, what is no character replaced by U+FFFD."""
    return value if isinstance(value, Html) else Html(_NO_TEXT.sub("\ufffd", str(value)).translate(_ESCAPES))


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """Makes an element.

    Args:
      name: of the element.
      children: what is in it, escaped where it is no `Html`; None is left out.
      attributes: `class_` is `class`, `data_value` is `data-value`; None and False are left out, True has no value.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inside = "".join(escape(child) for child in children if child is not None)
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{inside}</{name}>")


def join(parts: Iterable[Any]) -> Html:
    """Puts parts one after the other, each escaped where it is no `Html`."""
    return Html("".join(escape(part) for part in parts))


def section(identifier: str, title: str, *children: Any) -> Html:
    """A part of the page with a heading that links lead to."""
    return tag("section", tag("h2", title), *children, id=identifier)


def table(
    heads: Sequence[str], rows: Iterable[Sequence[Any]], *, label: str, numbers: Iterable[int] = (), sorts: bool = False
) -> Html:
    """Makes a table that scrolls sideways where it has to.

    Args:
      heads: of the columns.
      rows: of cells: a value, or (what is shown, what the column is sorted by).
      label: what the table is, for who cannot see it.
      numbers: columns of numbers.
      sorts: whether its heads are buttons that sort it.
    """
    right = set(numbers)

    def cell(index: int, value: Any) -> Html:
        shown, key = value if isinstance(value, tuple) else (value, None)
        if index == 0:
            return tag("th", shown, scope="row", data_value=key)
        return tag("td", shown, class_="number" if index in right else None, data_value=key)

    head = join(
        tag("th", tag("button", name, type="button") if sorts else name, scope="col",
            class_="number" if index in right else None, aria_sort="none" if sorts else None)
        for index, name in enumerate(heads)
    )  # fmt: skip
    body = join(tag("tr", *(cell(index, value) for index, value in enumerate(row))) for row in rows)
    inside = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), class_="sorts" if sorts else None)
    return tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=label)
