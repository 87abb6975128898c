"""What collectives of a compiled program exchange between chips."""

import math
import re

from effnet_jax.tpu.hlo import Computation, Instruction, Module

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_LISTED_GROUP = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED_GROUP = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH_GROUP = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_ALIASES = re.compile(r"output_to_operand_aliasing=\{(.*?\))\}")
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+), ")


def is_collective(instruction: Instruction) -> bool:
    """Whether chips exchange something in it."""
    return instruction.opcode.removesuffix("-start") in COLLECTIVES


def exchanged_bytes(module: Module, instruction: Instruction, computation: Computation) -> tuple[int, int]:
    """Bytes of the whole arrays of a collective, and bytes that a chip sends for it around a ring."""
    taken = sum(buffer.bytes for name in instruction.operands for buffer in computation[name].results)
    whole = max(taken, sum(buffer.bytes for buffer in module.results(instruction)))
    opcode = instruction.opcode.removesuffix("-start")
    if opcode == "collective-permute":
        return whole, taken
    group = _group(instruction, module.devices)
    passes = 2 if opcode == "all-reduce" and not _is_scattered(instruction, computation) else 1
    return whole, passes * whole * (group - 1) // group


def _group(instruction: Instruction, devices: int) -> int:
    """How many chips take part in a collective together."""
    if listed := _LISTED_GROUP.search(instruction.attributes):
        return len(listed[1].split(","))
    if counted := _COUNTED_GROUP.search(instruction.attributes):
        return int(counted[1])
    if mesh := _MESH_GROUP.search(instruction.attributes):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([^']*)'", mesh[2]))
    return devices


def _is_scattered(instruction: Instruction, computation: Computation) -> bool:
    """Whether an all-reduce is half of a reduce-scatter: in one fusion with the slice that takes a chip's share."""
    users = [user for user in computation.values() if instruction.name in user.operands]
    return bool(users) and all(user.opcode == "dynamic-slice" for user in users)


def begins(fusion: Instruction, instruction: Instruction, computation: Computation) -> bool:
    """Whether an instruction in a fusion is a collective, and this fusion the first of those that it is spread over."""
    if not is_collective(instruction):
        return False
    starts = ["AsyncCollectiveStart" in i.attributes for i in computation.values() if instruction.name in i.operands]
    return any(starts) or not aliases(fusion)


def aliases(instruction: Instruction) -> list[tuple[int, int]]:
    """The results and operands that are one buffer."""
    found = _ALIASES.search(instruction.attributes)
    return [(int(output or 0), int(operand)) for output, operand in _ALIAS.findall(found[1])] if found else []
