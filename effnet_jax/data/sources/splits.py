"""Split expressions, as tensorflow-datasets writes them, for every kind of source.

`train`, `train[:90%]`, `train[90%:]`, `train[:5000]`, `train[-100:]`, `train+validation`, `all`. Percentages are
rounded to the closest example, as tensorflow-datasets does, so that `[:90%]` and `[90%:]` never overlap and never
leave one out.
"""

import re
from collections.abc import Collection, Mapping

from effnet_jax.errors import DataError, nearest

_PART = re.compile(r"(?P<name>\w(?:[\w. -]*[\w-])?)(?P<slice>\[(?P<start>[^:\[\]]*):(?P<stop>[^:\[\]]*)\])?")
# Names that stand for a split, in any case of their letters.
CALLED = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
_BOUND = re.compile(r"(?P<value>-?\d[\d_]*(?:\.\d+)?)(?P<percent>%?)")


def called(name: str, there: Collection[str]) -> str:
    """What the split that somebody asks for is called where it is: the most exact of the names; "" where none is."""
    if name in there:
        return name
    others = next((names for names in CALLED.values() if name.lower() in names), ())
    for other in (name.lower(), *others):
        for found in there:
            if found.lower() == other:
                return found
    return ""


def split_names(expression: str) -> list[str]:
    """The names of the splits that an expression asks for; what is malformed is told by `parse_split`."""
    return [match["name"] for part in str(expression).split("+") if (match := _PART.fullmatch(part.strip()))]


def parse_split(
    expression: str, sizes: Mapping[str, int], where: str = "the data set", *, known: Collection[str] = ()
) -> list[tuple[str, int, int]]:
    """Resolves a split expression.

    Args:
      expression: such as `"train[:90%]+validation"`.
      sizes: the splits that exist, with their numbers of examples.
      where: what error messages call the data set.
      known: names of splits that there are; by default those of `sizes`.

    Returns:
      (split, start, stop) of each part, in order.

    Raises:
      DataError: an unknown split (with the nearest names), a malformed slice, one outside the split, or no examples.
    """
    known = known or sizes
    parts = []
    for text in str(expression).split("+"):
        text = text.strip()
        match = _PART.fullmatch(text)
        if not match:
            raise _malformed(text, where)
        name = match["name"]
        if name == "all" and name not in sizes:
            if match["slice"]:
                raise DataError(f"{where}: 'all' cannot be sliced ({text!r}): slice the splits {', '.join(sizes)}")
            parts += [(split, 0, size) for split, size in sizes.items()]
            continue
        if name not in sizes:
            raise DataError(
                f"{where} has no split {name!r} (it has {', '.join(known)}): {nearest(name, known)}; a part of a split "
                "can stand for another (data.train='train[:90%]' data.validation='train[90%:]'), and '' for none"
            )
        start, stop = _bounds(match, text, sizes[name], where) if match["slice"] else (0, sizes[name])
        parts.append((name, start, stop))
    if not any(stop > start for _, start, stop in parts):
        raise DataError(f"{where}: the split {str(expression)!r} holds no examples ({dict(sizes)}): widen it")
    return [part for part in parts if part[2] > part[1]]


def _malformed(text: str, where: str) -> DataError:
    return DataError(
        f"{where}: {text!r} is not a split expression: write them as train, train[:90%], train[90%:], train[:5000] "
        "or train+validation"
    )


def _bounds(match: re.Match, text: str, size: int, where: str) -> tuple[int, int]:
    bounds = [_BOUND.fullmatch(match[side].strip()) for side in ("start", "stop")]
    if any(bound is None and match[side].strip() for bound, side in zip(bounds, ("start", "stop"), strict=True)):
        raise _malformed(text, where)
    if not any(bounds):
        raise _malformed(text, where)
    percent = any(bound and bound["percent"] for bound in bounds)  # one % makes both percentages
    resolved = []
    for bound, default in zip(bounds, (0, size), strict=True):
        if bound is None:
            resolved.append(default)
            continue
        value = float(bound["value"])
        if not percent and not value.is_integer():
            raise _malformed(text, where)
        if percent and abs(value) > 100:
            raise DataError(f"{where}: {text!r} goes beyond 100 %")
        position = round(value * size / 100.0) if percent else int(value)
        if abs(position) > size:
            raise DataError(f"{where}: {text!r} goes beyond the split's {size:,} examples")
        resolved.append(size + position if position < 0 else position)
    return resolved[0], resolved[1]
