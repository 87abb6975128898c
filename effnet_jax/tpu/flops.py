"""Floating-point operations of convolutions and matrix products, two for each multiply-accumulate.

Positions where a kernel meets padding, or the gaps of a dilated input, are not counted, as in XLA's own analysis
(`xla/service/hlo_cost_analysis.cc`, `GetConvolutionFlops`). XLA adds one operation for each element of elementwise
instructions; they run on other units than the ones whose peak a chip is known for, and are left out here.
"""

import functools
import math
import re

from effnet_jax.tpu.hlo import Computation, Instruction

_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_GROUPS = re.compile(r"\b(feature|batch)_group_count=(\d+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


def instruction_flops(instruction: Instruction, computation: Computation) -> int:
    """Returns the operations of one run of a `convolution` or `dot`; 0 for other instructions."""
    if instruction.opcode not in ("convolution", "dot"):
        return 0
    left, right = (computation[name].results[0].dims for name in instruction.operands[:2])
    result = instruction.results[0].dims
    if instruction.opcode == "dot":
        found = _CONTRACTED.search(instruction.attributes)
        contracted = [int(axis) for axis in found[1].split(",") if axis] if found else []
        return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
    labels = _LABELS.search(instruction.attributes)
    if labels is None:
        return 0
    inputs, kernel, outputs = (
        dict(zip(names, dims, strict=True)) for names, dims in _named(labels, left, right, result)
    )
    groups = {kind: int(count) for kind, count in _GROUPS.findall(instruction.attributes)}
    features = inputs["f"] // groups.get("feature", 1) * outputs["f"]
    batch = inputs["b"] // groups.get("batch", 1)
    found = _WINDOW.search(instruction.attributes)
    window = dict(item.split("=") for item in found[1].split()) if found else {}
    positions = 1
    for axis in range(len(left) - 2):
        low, _, _ = _of_axis(window.get("pad"), axis, "0_0").partition("_")
        positions *= _valid_positions(
            kernel[str(axis)],
            outputs[str(axis)],
            inputs[str(axis)],
            int(low),
            *(int(_of_axis(window.get(key), axis, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate")),
        )
    return 2 * features * batch * positions


def _named(labels: re.Match[str], *shapes: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return list(zip(labels.groups(), shapes, strict=True))


def _of_axis(values: str | None, axis: int, default: str) -> str:
    return values.split("x")[axis] if values else default


@functools.lru_cache(maxsize=4096)
def _valid_positions(
    kernel: int, outputs: int, inputs: int, low: int, stride: int, input_dilation: int, kernel_dilation: int
) -> int:
    """How many pairs of a kernel's element and an output's position meet an element of the input, along one axis."""
    last = (inputs - 1) * input_dilation
    common = math.gcd(stride, input_dilation)
    period = input_dilation // common  # of the outputs that meet an element and not a gap
    inverse = pow(stride // common, -1, period)
    pairs = 0
    for tap in range(kernel):  # no inner loop: the compiler also turns a batch into an axis of a window
        start = tap * kernel_dilation - low  # the position of output 0
        if start % common:
            continue
        first, end = max(0, -(start // stride)), min(outputs, (last - start) // stride + 1)
        hit = first + (-start // common * inverse - first) % period
        pairs += len(range(hit, end, period))
    return pairs
