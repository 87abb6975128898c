"""Which unit of the model an instruction of a compiled step belongs to."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from effnet_jax.tpu.hlo import Module
from effnet_jax.tpu.program import Moved

_UNIT = re.compile(r"(?<!\w)(stem|block\d+[a-z]+|top|classifier)(?!\w)")
OTHER = "optimizer/other"


class Origin(NamedTuple):
    """A unit of the model or `"optimizer/other"`; `"forward"`, `"backward"` or `""`; the name that JAX gave."""

    unit: str
    direction: str
    op_name: str


def origin(module: Module, moved: Moved) -> Origin:
    """Finds where an instruction comes from, by the names that JAX gave to what was fused into it.

    A copy has no name: one that brings something onto the chip belongs to who uses it, one that takes something off the
    chip to who made it.
    """
    names = list(moved.op_names)
    if not names:
        to = moved.instruction.results[moved.instruction.opcode == "slice-start"]
        readers, makers = (_near(module, moved, forward=forward) for forward in (True, False))
        names = [*readers, *makers] if to.hbm_bytes == 0 else [*makers, *readers]
    for name in names:
        found = _UNIT.search(name)
        if found and "opt_state" not in name:
            return Origin(found[1], "backward" if "transpose(" in name else "forward", name)
    return Origin(OTHER, "", names[0] if names else "")


def _near(module: Module, moved: Moved, *, forward: bool) -> Iterator[str]:
    """The names of the nearest instructions that have some: readers of the result, or makers of the operands."""
    computation = moved.computation
    waiting, seen = [moved.instruction], {moved.instruction.name}
    while waiting:
        instruction = waiting.pop(0)
        if forward:
            near = [user for user in computation.values() if instruction.name in user.operands]
        else:
            near = [computation[name] for name in instruction.operands if name in computation]
        for other in near:
            if other.name in seen:
                continue
            seen.add(other.name)
            names = [inner.op_name for inner, _ in module.inside(other, computation) if inner.op_name]
            yield from names
            if not names and other.opcode not in ("while", "tuple"):
                waiting.append(other)
