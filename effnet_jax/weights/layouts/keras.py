"""keras.applications' EfficientNet: by the names of its layers, and by their kinds and numbers.

Source: `keras/src/applications/efficientnet.py`. Files of Keras 2 and whole models in HDF5 name layers
(`block1a_dwconv/depthwise_kernel`); Keras 3's `.weights.h5` and `.keras` number layers of one class as they stand in
the model (`layers/conv2d_3/vars/0`).
"""

import collections
import re
from collections.abc import Iterable, Mapping

from effnet_jax.model.variants import Variant
from effnet_jax.weights import names
from effnet_jax.weights.checkpoint import Entry
from effnet_jax.weights.layouts.base import Collected, Layout, Stored

_NORM_LEAVES = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
_DEPTHWISE = re.compile(r"(.*_dwconv)/depthwise_kernel")
_NORMALIZATION = re.compile(r"(layers/)?normalization(_\d+)?/.*|.*/seed_generator.*|optimizer.*")


class Keras(Layout):
    """By the names of layers."""

    name = "keras"
    program = "keras.applications"

    def recognises(self, stored: Iterable[str]) -> bool:
        return "stem_conv/kernel" in stored

    def table(self, variant: Variant, num_classes: int) -> tuple[Stored, ...]:
        return tuple(_by_name(row) for row in names.table(variant, num_classes))

    def collect(self, entries: Mapping[str, Entry], where: str, ema: bool) -> Collected:
        del where, ema
        unused = [name for name in entries if self.is_bookkeeping(name)]
        # Keras 2 calls a depthwise layer's kernel by another name.
        taken = {_DEPTHWISE.sub(r"\1/kernel", name): name for name in entries if not self.is_bookkeeping(name)}
        return Collected(taken, unused, [])

    def is_bookkeeping(self, name: str) -> bool:
        return bool(_NORMALIZATION.fullmatch(name))


class KerasNumbered(Keras):
    """By the kinds and numbers of layers."""

    name = "keras3"

    def recognises(self, stored: Iterable[str]) -> bool:
        return {"layers/conv2d/vars/0", "layers/depthwise_conv2d/vars/0"} <= set(stored)

    def table(self, variant: Variant, num_classes: int) -> tuple[Stored, ...]:
        counts: collections.Counter[str] = collections.Counter()
        layers: dict[str, str] = {}
        rows = []
        for row in names.table(variant, num_classes):
            layer, leaf = _by_name(row).name.split("/")
            if layer not in layers:
                kind = _kind(row)
                layers[layer] = f"{kind}_{counts[kind]}" if counts[kind] else kind
                counts[kind] += 1
            number = list(_NORM_LEAVES.values()).index(leaf) if row.is_norm else ("kernel", "bias").index(leaf)
            rows.append(Stored(row, f"layers/{layers[layer]}/vars/{number}", _by_name(row).shape))
        return tuple(rows)


def _by_name(row: names.Tensor) -> Stored:
    layer = {"depthwise_conv": "dwconv", "depthwise_bn": "bn"}.get(row.layer, row.layer)
    full = "predictions" if row.unit == "classifier" else f"{row.unit}_{layer}"
    if row.is_norm:
        return Stored(row, f"{full}/{_NORM_LEAVES[row.leaf]}", row.shape)
    if row.is_depthwise_kernel:  # [k, k, C, 1] has the same order in memory
        size, _, _, channels = row.shape
        return Stored(row, f"{full}/kernel", (size, size, channels, 1))
    return Stored(row, f"{full}/{row.leaf}", row.shape)


def _kind(row: names.Tensor) -> str:
    if row.is_norm:
        return "batch_normalization"
    if row.unit == "classifier":
        return "dense"
    return "depthwise_conv2d" if row.is_depthwise_kernel else "conv2d"
