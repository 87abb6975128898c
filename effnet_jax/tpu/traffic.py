"""The bytes that an instruction of a compiled program reads and writes.

- They are those of its operands and results. A buffer's layout names its memory space: `S(1)` and the like are on the
  chip, the rest is HBM. Bytes are of the logical shape, without the padding of tiles.
- Of an operand that a fusion only looks at through `dynamic-slice`, as a loop takes one microbatch after the other, the
  slices count; of a result that `dynamic-update-slice` writes in place, the update.
- Asynchronous copies and slices are one pass on each side.
- A collective that runs beside other work is spread over several fusions, which hand its buffers on: they count once.
"""

import dataclasses
import math
from collections.abc import Iterator

from effnet_jax.tpu.collectives import aliases, is_collective
from effnet_jax.tpu.hlo import Buffer, Computation, Instruction, Module

_SAME_BYTES = ("bitcast", "reshape")


@dataclasses.dataclass(frozen=True)
class _Place:
    """A computation, and where it is a fusion's, that fusion and the place where it stands."""

    computation: Computation
    fusion: Instruction | None = None
    outer: "_Place | None" = None


def touched_buffers(module: Module, instruction: Instruction, computation: Computation) -> Iterator[tuple[int, Buffer]]:
    """The bytes that an instruction reads or writes of each buffer."""
    if instruction.opcode in ("copy-start", "slice-start"):  # (to, from, context), (from, to, context)
        first, second = instruction.results[:2]
        size = min(first.bytes, second.bytes)
        yield from ((size, first), (size, second))
        return
    outputs, inputs = _handed_on(module, instruction, computation)
    for index, written in enumerate(_written(module, instruction)):
        if index not in outputs:
            yield written
    for position, name in enumerate(instruction.operands):
        operand = computation.get(name)
        if operand is None or position in inputs:
            continue
        used = _used(module, _Place(computation), instruction, position)
        for buffer in module.results(operand):
            yield int(min(buffer.bytes, used)), buffer


def _handed_on(module: Module, instruction: Instruction, computation: Computation) -> tuple[set[int], set[int]]:
    """The results and the operands of a collective's fusion that are one buffer, on its way to the next fusion."""
    pairs = aliases(instruction)
    if not pairs or not any(is_collective(inner) for inner, _ in module.inside(instruction, computation)):
        return set(), set()
    return {output for output, _ in pairs}, {operand for _, operand in pairs}


def _written(module: Module, instruction: Instruction) -> list[tuple[int, Buffer]]:
    results = module.results(instruction)
    if instruction.opcode == "dynamic-update-slice":
        return []  # in place; the update is counted where it is read
    if instruction.opcode == "fusion":
        name = instruction.called["calls"][0]
        inner, root = module.computations[name], module.root(name)
        parts = [inner.get(part) for part in root.operands] if root and root.opcode == "tuple" else [root]
        if len(parts) == len(results):
            pairs = zip(results, parts, strict=True)
            return [(_updated(inner, part, buffer.bytes), buffer) for buffer, part in pairs]
    return [(buffer.bytes, buffer) for buffer in results]


def _updated(computation: Computation, part: Instruction | None, whole: int) -> int:
    """Bytes that are written of a fusion's result: all, or where it is updated in place, the update."""
    while part is not None and part.opcode in _SAME_BYTES:
        part = computation.get(part.operands[0])
    if part is None or part.opcode != "dynamic-update-slice":
        return whole
    update = computation.get(part.operands[1])
    return sum(buffer.bytes for buffer in update.results) if update else whole


def _used(module: Module, place: "_Place", user: Instruction, position: int) -> float:
    """Bytes of an operand that an instruction looks at; infinite: all of it."""
    if user.opcode == "dynamic-slice" and position == 0:  # what a loop takes from its arrays
        return sum(buffer.bytes for buffer in user.results)
    if user.opcode == "dynamic-update-slice" and position == 0:
        return 0  # written in place
    if user.opcode in _SAME_BYTES and place.fusion:
        return _used_inside(module, place, user)
    if user.opcode not in ("fusion", "async-start"):
        return math.inf
    inner = module.computations[user.called["calls"][0]]
    parameter = next((i for i in inner.values() if i.opcode == "parameter" and i.number == position), None)
    return _used_inside(module, _Place(inner, user, place), parameter) if parameter else math.inf


def _used_inside(module: Module, place: "_Place", value: Instruction) -> float:
    """Bytes of a value that its users in a fusion look at; what the fusion returns, its own users may look at."""
    if place.fusion is None or place.outer is None:
        return math.inf  # a buffer of its own
    total = _used_inside(module, place.outer, place.fusion) if value.root else 0.0
    for user in place.computation.values():
        for position, operand in enumerate(user.operands):
            if operand == value.name:
                total += _used(module, place, user, position)
    return total
