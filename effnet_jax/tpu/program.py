"""What a compiled program moves through HBM, sends to other chips and computes, instruction by instruction.

A loop counts its body as often as it runs; of a conditional's branches the one that moves most counts. What an
instruction reads and writes: `traffic.py`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from effnet_jax.tpu.collectives import begins, exchanged_bytes
from effnet_jax.tpu.flops import instruction_flops
from effnet_jax.tpu.hlo import HBM, HOST, Computation, Instruction, Module, read_module
from effnet_jax.tpu.loops import loop_trips
from effnet_jax.tpu.traffic import touched_buffers

# What moves nothing by itself.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "copy-done", "slice-done", "async-done", "async-update", "all-reduce-done", "all-gather-done",
    "collective-permute-done", "send-done", "recv-done", "iota", "domain",
}  # fmt: skip
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast")  # custom calls that only name memory
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Moved:
    """What one instruction of the program does in one run of the program, all repetitions of a loop together.

    Attributes:
      instruction: the instruction.
      computation: the one that it is scheduled in.
      times: how often it runs.
      hbm_bytes: read from and written to HBM.
      touched_bytes: likewise in any memory.
      flops: of convolutions and matrix products.
      collectives: how many collectives it runs.
      collective_bytes: of the arrays that they reduce, gather or scatter, whole.
      sent_bytes: what the chip sends for them, around a ring.
      op_names: where it comes from, the names of all that was fused into it.
    """

    instruction: Instruction
    computation: Computation
    times: int
    hbm_bytes: int
    touched_bytes: int
    flops: int
    collectives: int
    collective_bytes: int
    sent_bytes: int
    op_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over a program, by chip; the attributes are those of `Moved`."""

    hbm_bytes: int
    flops: int
    collectives: int
    collective_bytes: int
    sent_bytes: int


class Program:
    """A compiled program.

    Args:
      text: from `compiled.as_text()`.
    """

    def __init__(self, text: str) -> None:
        self.module: Module = read_module(text)

    @property
    def devices(self) -> int:
        return self.module.devices

    @functools.cached_property
    def moved(self) -> list[Moved]:
        """What each instruction moves, in the order of the schedule."""
        return list(self._moved_in(self.module.entry, 1))

    @functools.cached_property
    def totals(self) -> Totals:
        """The sums over all instructions."""
        fields = [field.name for field in dataclasses.fields(Totals)]
        return Totals(**{name: sum(getattr(moved, name) for moved in self.moved) for name in fields})

    def bytes_accessed(self, once: float) -> float:
        """Corrects XLA's "bytes accessed", which counts a loop's body once.

        Args:
          once: `compiled.cost_analysis()["bytes accessed"]`.

        Returns:
          An estimate: `once` times what the operands and results of all instructions are in bytes of any memory, over
          what they would be if each body ran once. Without loops it is `once`.
        """
        counted = sum(moved.touched_bytes // moved.times for moved in self.moved)
        return once * sum(moved.touched_bytes for moved in self.moved) / counted if counted else once

    def unknown_loops(self) -> list[str]:
        """Returns the names of loops that run as long as data says; their bodies are counted once."""
        return [
            instruction.name
            for computation in self.module.computations.values()
            for instruction in computation.values()
            if instruction.opcode == "while" and loop_trips(self.module, computation, instruction) is None
        ]

    def host_transfers(self) -> list[Moved]:
        """Returns the instructions that exchange data with the host inside the program."""
        return [moved for moved in self.moved if _meets_host(moved.instruction)]

    # ---- the walk through the schedule

    def _moved_in(self, name: str, times: int) -> Iterator[Moved]:
        computation = self.module.computations[name]
        for instruction in computation.values():
            called = instruction.called
            if instruction.opcode == "while":
                trips = loop_trips(self.module, computation, instruction)
                yield from self._moved_in(called["body"][0], times * (1 if trips is None else trips))
            elif instruction.opcode == "call":
                yield from self._moved_in(called["to_apply"][0], times)
            elif instruction.opcode == "conditional":
                names = called.get("branches") or called["true_computation"] + called["false_computation"]
                branches = [list(self._moved_in(branch, times)) for branch in names]
                yield from max(branches, key=lambda moved: sum(m.hbm_bytes for m in moved))
            elif times and not _is_free(instruction):
                yield self._moved(instruction, computation, times)

    def _moved(self, instruction: Instruction, computation: Computation, times: int) -> Moved:
        touched = list(touched_buffers(self.module, instruction, computation))
        inside = list(self.module.inside(instruction, computation))
        collectives = [exchanged_bytes(self.module, *place) for place in inside if begins(instruction, *place)]
        return Moved(
            instruction=instruction,
            computation=computation,
            times=times,
            hbm_bytes=times * sum(size for size, buffer in touched if buffer.space == HBM),
            touched_bytes=times * sum(size for size, _ in touched),
            flops=times * sum(instruction_flops(*place) for place in inside),
            collectives=times * len(collectives),
            collective_bytes=times * sum(size for size, _ in collectives),
            sent_bytes=times * sum(sent for _, sent in collectives),
            op_names=tuple(i.op_name for i, _ in inside if i.op_name),
        )


def _is_free(instruction: Instruction) -> bool:
    return instruction.opcode in _FREE or _target(instruction) in _FREE_TARGETS


def _target(instruction: Instruction) -> str:
    found = _TARGET.search(instruction.attributes) if instruction.opcode == "custom-call" else None
    return found[1] if found else ""


def _meets_host(instruction: Instruction) -> bool:
    """Whether an instruction exchanges data with the host: by a queue, a callback, or a buffer in the host's memory."""
    return (
        instruction.opcode in ("infeed", "outfeed")
        or (instruction.opcode in ("send", "recv") and "is_host_transfer=true" in instruction.attributes)
        or "callback" in _target(instruction).lower()
        or any(buffer.space == HOST for buffer in instruction.results)
    )
