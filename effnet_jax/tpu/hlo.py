"""Reads the text of a compiled XLA program, `compiled.as_text()`, into instructions. Knows nothing of their cost."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "f8e4m3fn": 8, "f8e5m2": 8, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64,
    "c128": 128,
}  # fmt: skip
HBM, HOST = 0, 5  # memory spaces of a TPU program; the others (1: VMEM, 2: semaphores, 6: SMEM) are on the chip

_SHAPE = re.compile(r"\b([a-z]+\d+[a-z\d]*|pred)\[([\d,]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_DEVICES = re.compile(r"\b(replica_count|num_partitions)=(\d+)")

Computation = Mapping[str, "Instruction"]


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def bytes(self) -> int:
        """Of the logical shape, without the padding of tiles."""
        return math.prod(self.dims) * _BITS.get(self.dtype, 0) // 8

    @property
    def hbm_bytes(self) -> int:
        return self.bytes if self.space == HBM else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: unique in its computation.
      opcode: such as `fusion`.
      results: the arrays that it makes; those of nested tuples in order.
      operands: names of other instructions of the computation.
      called: role (`calls`, `body`, `condition`, `to_apply`, `branches`) → names of computations.
      op_name: where it comes from, as JAX names it.
      trips: how often a loop runs, where the compiler has noted it.
      arguments: what stands between the parentheses.
      attributes: what stands behind them.
      root: whether it is what its computation returns.
    """

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    called: Mapping[str, tuple[str, ...]]
    op_name: str
    trips: int | None
    arguments: str
    attributes: str
    root: bool

    @property
    def number(self) -> int | None:
        """The number in parentheses: a parameter's, or a scalar constant's."""
        return int(self.arguments) if re.fullmatch(r"-?\d+", self.arguments) else None


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, instructions in the order of the schedule.

    Attributes:
      computations: name → its instructions by name.
      entry: the computation that runs.
      devices: how many run it.
    """

    computations: Mapping[str, Computation]
    entry: str
    devices: int

    def root(self, computation: str) -> Instruction | None:
        """What a computation returns."""
        return next((i for i in self.computations[computation].values() if i.root), None)

    def results(self, instruction: Instruction) -> tuple[Buffer, ...]:
        """What an instruction makes; an asynchronous one lists its operands before that."""
        count = len(instruction.operands)
        if instruction.opcode in ("all-gather-start", "collective-permute-start"):
            return instruction.results[count : 2 * count]
        if instruction.opcode == "async-start":
            root = self.root(instruction.called["calls"][0])
            return root.results if root else ()
        return instruction.results

    def inside(self, instruction: Instruction, computation: Computation) -> Iterator[tuple[Instruction, Computation]]:
        """An instruction of a computation and all that was fused into it, each with its own computation."""
        yield instruction, computation
        for name in instruction.called.get("calls", ()):
            for inner in self.computations[name].values():
                yield from self.inside(inner, self.computations[name])


def read_module(text: str) -> Module:
    """Reads `compiled.as_text()`."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, devices = "", 1
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if line.startswith("HloModule "):
            devices = math.prod(int(count) for _, count in _DEVICES.findall(line))
        elif header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current[found[2]] = _read_instruction(found[2], line[found.end() :], bool(found[1]))
    return Module(computations, entry, devices)


def _read_instruction(name: str, rest: str, root: bool) -> Instruction:
    type_text, rest = _split_type(rest)
    opcode, _, arguments = rest.partition("(")
    inside, attributes = _split_parens("(" + arguments)
    called: dict[str, tuple[str, ...]] = {}
    for role, computation in _CALLED.findall(attributes):
        called[role] = (*called.get(role, ()), computation)
    if branches := _BRANCHES.search(attributes):
        called["branches"] = tuple(re.findall(r"[\w.\-]+", branches[1]))
    op_name = _OP_NAME.search(attributes)
    trips = _TRIPS.search(attributes)
    opcode = opcode.strip()
    return Instruction(
        name=name,
        opcode=opcode,
        results=tuple(_buffers(type_text)),
        operands=() if opcode in ("parameter", "constant") else tuple(_OPERAND.findall(inside)),
        called=called,
        op_name=op_name[1] if op_name else "",
        trips=int(trips[1]) if trips else None,
        arguments=inside[1:-1],
        attributes=attributes,
        root=root,
    )


def _buffers(type_text: str) -> Iterator[Buffer]:
    for dtype, dims, layout in _SHAPE.findall(type_text):
        space = _SPACE.search(layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        yield Buffer(dtype, sizes, int(space[1]) if space else HBM)


def _split_type(text: str) -> Sequence[str]:
    if text.startswith("("):
        return _split_parens(text)
    head, _, rest = text.partition(" ")
    return head, rest


def _split_parens(text: str) -> tuple[str, str]:
    """Splits after the parenthesis that closes the first one: ("(a(b))", "rest")."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: index + 1], text[index + 1 :].lstrip()
    return text, ""
