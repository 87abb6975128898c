"""TensorFlow.js' graph models: layers numbered as they come, with what they do in their names (`weights.graph`).

Converters fold batch norm into the convolution before it. Such a layer has a kernel that is multiplied already and a
bias; the reader adds a scale of 1, a mean of 0 and the variance that a batch norm multiplies by exactly 1 with.
"""

import re
from collections.abc import Iterable, Mapping

from effnet_jax.model.variants import Variant
from effnet_jax.weights import names
from effnet_jax.weights.checkpoint import Entry
from effnet_jax.weights.graph import layer_name
from effnet_jax.weights.layouts.base import Collected, Layout, Stored

CONSTANTS = "constants/"  # numbers that are no weights: shapes, axes, the image's scaling
EXTRA = "extra/"  # numbers that no layer takes


class GraphModel(Layout):
    """See the module."""

    name = "tfjs"
    program = "TensorFlow.js' graph models"

    def recognises(self, stored: Iterable[str]) -> bool:
        return any(name.startswith("000_conv") for name in stored)

    def table(self, variant: Variant, num_classes: int) -> tuple[Stored, ...]:
        layers: list[str] = []
        rows = []
        for row in names.table(variant, num_classes):
            if row.leaf == "kernel":
                layers.append(_name(row, variant, len(layers)))
            rows.append(_stored(row, layers[-1]))  # a batch norm's belong to the convolution before it
        return tuple(rows)

    def collect(self, entries: Mapping[str, Entry], where: str, ema: bool) -> Collected:
        del where, ema
        unused = [name for name in entries if self.is_bookkeeping(name)]
        taken: dict[str, str] = {}
        unexpected = []
        for name in entries:
            if self.is_bookkeeping(name):
                continue
            known = re.sub(r"^\d+_dense(?=/)", "classifier", name)  # the same in all variants
            if name.startswith(EXTRA) or known in taken:
                unexpected.append(name)
            else:
                taken[known] = name
        return Collected(taken, unused, unexpected)

    def is_bookkeeping(self, name: str) -> bool:
        return name.startswith(CONSTANTS)


def _name(row: names.Tensor, variant: Variant, number: int) -> str:
    if row.unit == "classifier":
        return "classifier"  # the same in all variants
    block = next((block for block in variant.blocks if block.name == row.unit), None)
    activation = "relu6" if variant.lite else "sigmoid"  # a part of swish
    if block is None:
        return layer_name(number, "conv", 2 if row.unit == "stem" else 1, activation, False)
    if row.is_depthwise_kernel:
        return layer_name(number, "depthwise", block.stride, activation, False)
    if row.layer in ("se_reduce", "se_expand"):
        return layer_name(number, "squeeze", 1, activation, False)
    if row.layer == "project_conv":
        return layer_name(number, "conv", 1, "", block.skip)
    return layer_name(number, "conv", 1, activation, False)


def _stored(row: names.Tensor, layer: str) -> Stored:
    if row.is_depthwise_kernel:  # [k, k, C, 1] has the same order in memory
        size, _, _, channels = row.shape
        return Stored(row, f"{layer}/kernel", (size, size, channels, 1))
    return Stored(row, f"{layer}/{row.leaf}", row.shape)
