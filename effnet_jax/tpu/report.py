"""What a compiled step would need and do on a chip that is not there: memory, traffic, and the time that these take."""

import dataclasses
import re
from typing import Any

from effnet_jax.tpu.chips import Chip
from effnet_jax.tpu.program import Moved, Program
from effnet_jax.tpu.units import origin

DEAREST = 10
_NEEDED = re.compile(r"(?:on HBM, .*memory required[^(]*\(|Used )([\d.]+)([KMGT]?)(?:\)| of [\d.]+[KMGT]? hbm)")
_PREFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclasses.dataclass(frozen=True)
class Dearest:
    """One of the instructions that move most through HBM.

    Attributes:
      unit: of the model, or `"optimizer/other"`.
      direction: `"forward"`, `"backward"` or `""`.
      mb_per_image: megabytes (10⁶) through HBM.
      instruction: its name in the compiled program.
      op_name: where it comes from, as JAX names it.
    """

    unit: str
    direction: str
    mb_per_image: float
    instruction: str
    op_name: str


@dataclasses.dataclass(frozen=True)
class Report:
    """A step, as the compiler made it. Where it does not fit, only the memory is known.

    Attributes:
      fits: whether it fits into the chip's memory.
      bytes_per_chip: memory at its fullest: arguments, outputs, temporaries and code, what is donated once.
      usable_bytes: what a chip has for a program.
      images_per_chip: of a step.
      flops_per_image: of convolutions and matrix products (`flops.py`).
      hbm_bytes_per_image: read from and written to HBM (`program.py`).
      bytes_accessed_per_image: XLA's own figure, which counts on-chip memory too; with loops an estimate.
      collective_bytes_per_image: of the arrays that are reduced, gathered or scattered over chips, whole.
      sent_bytes_per_image: what a chip sends for that, around a ring.
      collectives: how many such exchanges a step has.
      host_transfers: exchanges with the host in the middle of the step.
      unknown_loops: loops that run as long as data says; their bodies are counted once.
      compile_seconds: what the compiler took.
      seconds: what a step takes at the chip's peak, at its HBM's bandwidth and at its interconnect's.
      bound: which of these is longest: `"compute"`, `"memory"` or `"interconnect"`.
      step_seconds: the longest: no step can be faster, and one that overlaps all three perfectly is as fast.
      images_per_second: of the whole slice at that.
      images_per_second_per_chip: likewise.
      dearest: the instructions that move most.
    """

    fits: bool
    bytes_per_chip: int
    usable_bytes: int
    images_per_chip: float
    flops_per_image: float | None = None
    hbm_bytes_per_image: float | None = None
    bytes_accessed_per_image: float | None = None
    collective_bytes_per_image: float | None = None
    sent_bytes_per_image: float | None = None
    collectives: int | None = None
    host_transfers: int | None = None
    unknown_loops: int | None = None
    compile_seconds: float | None = None
    seconds: dict[str, float] | None = None
    bound: str | None = None
    step_seconds: float | None = None
    images_per_second: float | None = None
    images_per_second_per_chip: float | None = None
    dearest: tuple[Dearest, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for a JSON file."""
        return dataclasses.asdict(self)


def report(compiled: Any, chip: Chip, images_per_chip: float, compile_seconds: float | None = None) -> Report:
    """Reads a compiled step.

    Args:
      compiled: `jax.stages.Compiled`, for devices of that chip.
      chip: what it would run on.
      images_per_chip: of one step.
      compile_seconds: to be noted.
    """
    program = Program(compiled.as_text())
    totals, images = program.totals, images_per_chip
    seconds = {
        "compute": totals.flops / chip.peak_flops,
        "memory": totals.hbm_bytes / chip.hbm_bandwidth,
        "interconnect": totals.sent_bytes / chip.interchip_bandwidth,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    rate = images / seconds[bound]
    needed = _peak_bytes(compiled.memory_analysis())
    return Report(
        fits=needed <= chip.usable_bytes,
        bytes_per_chip=needed,
        usable_bytes=chip.usable_bytes,
        images_per_chip=images,
        flops_per_image=totals.flops / images,
        hbm_bytes_per_image=totals.hbm_bytes / images,
        bytes_accessed_per_image=program.bytes_accessed(compiled.cost_analysis()["bytes accessed"]) / images,
        collective_bytes_per_image=totals.collective_bytes / images,
        sent_bytes_per_image=totals.sent_bytes / images,
        collectives=totals.collectives,
        host_transfers=sum(moved.times for moved in program.host_transfers()),
        unknown_loops=len(program.unknown_loops()),
        compile_seconds=compile_seconds,
        seconds=seconds,
        bound=bound,
        step_seconds=seconds[bound],
        images_per_second=rate * program.devices,
        images_per_second_per_chip=rate,
        dearest=_dearest(program, images),
    )


def too_large(message: str, chip: Chip, images_per_chip: float) -> Report | None:
    """Reads the compiler's message about a step that does not fit; None where it is about something else."""
    found = _NEEDED.search(message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    needed = round(float(found[1]) * 2 ** _PREFIXES[found[2]])
    return Report(False, needed, chip.usable_bytes, images_per_chip)


def _peak_bytes(memory: Any) -> int:
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def _dearest(program: Program, images: float) -> tuple[Dearest, ...]:
    pieces: dict[str, list[Moved]] = {}  # an array that is sliced onto the chip counts as one
    for moved in program.moved:
        instruction = moved.instruction
        key = f"slices of {instruction.operands[0]}" if instruction.opcode == "slice-start" else instruction.name
        pieces.setdefault(key, []).append(moved)
    sizes = {key: sum(moved.hbm_bytes for moved in pieces[key]) for key in pieces}
    largest = sorted((key for key in pieces if sizes[key]), key=lambda key: -sizes[key])[:DEAREST]
    rows = [(key, origin(program.module, pieces[key][0])) for key in largest]
    return tuple(
        Dearest(found.unit, found.direction, sizes[key] / images / 1e6, key, found.op_name) for key, found in rows
    )
