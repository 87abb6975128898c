"""How often a loop of a compiled program runs."""

import re
from collections.abc import Callable

from effnet_jax.tpu.hlo import Computation, Instruction, Module

# The number that an element of the loop's state (or a fusion's parameter) holds before the first repetition, if known.
Known = Callable[[int], int | None]

_DIRECTION = re.compile(r"direction=(\w+)")
_INDEX = re.compile(r"index=(\d+)")
_PASSED_ON = ("copy", "copy-start", "copy-done", "bitcast", "convert", "reshape")


def loop_trips(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns how often a `while` of a computation runs.

    It is what the compiler has noted, else what the condition says: a counter below a bound. Both may be constants of
    the condition or of the state that the loop starts with.

    Returns:
      The number, or None where it depends on data.
    """
    if loop.trips is not None:
        return loop.trips
    state = computation.get(loop.operands[0])

    def initial(index: int) -> int | None:
        if state is None or state.opcode != "tuple":
            return None
        return _number(module, computation, state.operands[index], lambda _: None)

    condition = module.computations[loop.called["condition"][0]]
    compared = _comparison(module, loop.called["condition"][0])
    if compared is None:
        return None
    left, right, direction = compared
    bound = _number(module, condition, right, initial)
    if bound is None or direction not in ("LT", "LE"):
        return None
    start = _number(module, condition, left, initial) or 0
    step = _step(module, loop, _number(module, condition, left, lambda index: index), initial, start)
    return max(0, -(-(bound + (direction == "LE") - start) // step))


def _comparison(module: Module, condition: str) -> tuple[str, str, str] | None:
    """The condition's two sides, by their names in it, and the direction of the comparison."""
    root = module.root(condition)
    sides = root.operands if root else ()
    while root is not None and root.opcode == "fusion":
        inner = root.called["calls"][0]
        root = module.root(inner)
        numbers = [module.computations[inner][name].number for name in root.operands] if root else []
        if any(number is None for number in numbers):
            return None
        sides = tuple(sides[number] for number in numbers if number is not None)
    if root is None or root.opcode != "compare":
        return None
    direction = _DIRECTION.search(root.attributes)
    return (sides[0], sides[1], direction[1]) if direction else None


def _step(module: Module, loop: Instruction, counter: int | None, initial: Known, start: int) -> int:
    """What one repetition adds to the counter: 1 where it can't be told."""
    body = loop.called["body"][0]
    root = module.root(body)
    if counter is None or root is None or root.opcode != "tuple":
        return 1
    after = _number(module, module.computations[body], root.operands[counter], initial)
    return after - start if after is not None and after > start else 1


def _number(module: Module, computation: Computation, name: str, known: Known) -> int | None:
    """The integer that an instruction gives, where it follows from constants and what is known of the parameters."""
    instruction = computation.get(name)
    if instruction is None:
        return None
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == "constant":
        return instruction.number
    if opcode == "parameter":
        return None if instruction.number is None else known(instruction.number)
    if opcode == "get-tuple-element":
        index = _INDEX.search(instruction.attributes)
        source = computation.get(operands[0])
        return known(int(index[1])) if index and source and source.opcode == "parameter" else None
    if opcode in _PASSED_ON:
        return _number(module, computation, operands[0], known)
    if opcode == "add":
        first, second = (_number(module, computation, operand, known) for operand in operands)
        return None if first is None or second is None else first + second
    if opcode == "fusion":
        inner = instruction.called["calls"][0]
        root = module.root(inner)
        if root is None:
            return None
        return _number(
            module,
            module.computations[inner],
            root.name,
            lambda index: _number(module, computation, operands[index], known),
        )
    return None
