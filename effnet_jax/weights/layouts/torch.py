"""PyTorch's state dicts: those of timm, and of efficientnet_pytorch and efficientnet_lite_pytorch (lukemelas).

Sources: `timm/models/_efficientnet_blocks.py` and `efficientnet.py`, `efficientnet_pytorch/model.py`. timm's
`tf_efficientnet_*` and both others have the original's padding (SAME) and batch norm epsilon (1e-3); timm's
`efficientnet_*` have the same names with other padding and epsilon, which no name tells.
"""

import abc
from collections.abc import Iterable, Mapping

from effnet_jax.model.variants import Variant
from effnet_jax.weights import names
from effnet_jax.weights.checkpoint import Entry
from effnet_jax.weights.layouts.base import Collected, Layout, Stored

_KERNEL, _DENSE = (2, 3, 1, 0), (1, 0)
_LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var", "kernel": "weight"}
_WRAPPERS = ("module.", "model.")  # DataParallel, Lightning


class _Torch(Layout):
    """What both have in common."""

    first: str

    def recognises(self, stored: Iterable[str]) -> bool:
        return any(name in (self.first, *(wrapper + self.first for wrapper in _WRAPPERS)) for name in stored)

    def table(self, variant: Variant, num_classes: int) -> tuple[Stored, ...]:
        places = names.places(variant)
        return tuple(self._stored(row, places.get(row.unit)) for row in names.table(variant, num_classes))

    def _stored(self, row: names.Tensor, place: names.Place | None) -> Stored:
        axes = {4: _KERNEL, 2: _DENSE}.get(len(row.shape))
        shape = tuple(row.shape[axes.index(axis)] for axis in range(len(axes))) if axes else row.shape
        return Stored(row, f"{self._layer(row, place)}.{_LEAVES[row.leaf]}", shape, axes)

    @abc.abstractmethod
    def _layer(self, row: names.Tensor, place: names.Place | None) -> str:
        """What they call a layer."""

    def collect(self, entries: Mapping[str, Entry], where: str, ema: bool) -> Collected:
        del where, ema
        wrapper = next((wrapper for wrapper in _WRAPPERS if all(name.startswith(wrapper) for name in entries)), "")
        unused = [name for name in entries if self.is_bookkeeping(name)]
        return Collected({n.removeprefix(wrapper): n for n in entries if not self.is_bookkeeping(n)}, unused, [])

    def is_bookkeeping(self, name: str) -> bool:
        return name.endswith(".num_batches_tracked")


class Timm(_Torch):
    """timm: `tf_efficientnet_*`."""

    name = "timm"
    program = "timm"
    first = "conv_stem.weight"

    def _layer(self, row: names.Tensor, place: names.Place | None) -> str:
        if place is None:
            outer = {
                "stem": {"conv": "conv_stem", "bn": "bn1"},
                "top": {"conv": "conv_head", "bn": "bn2"},
                "classifier": {"classifier": "classifier"},
            }
            return outer[row.unit][row.layer]
        inner = {"depthwise_conv": "conv_dw", "se_reduce": "se.conv_reduce", "se_expand": "se.conv_expand"}
        if place.block.expand_ratio == 1:
            inner |= {"depthwise_bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}
        else:
            inner |= {"expand_conv": "conv_pw", "expand_bn": "bn1", "depthwise_bn": "bn2"}
            inner |= {"project_conv": "conv_pwl", "project_bn": "bn3"}
        return f"blocks.{place.stage}.{place.repeat}.{inner[row.layer]}"


class Lukemelas(_Torch):
    """efficientnet_pytorch and efficientnet_lite_pytorch."""

    name = "lukemelas"
    program = "efficientnet_pytorch"
    first = "_conv_stem.weight"

    def _layer(self, row: names.Tensor, place: names.Place | None) -> str:
        if place is None:
            outer = {
                "stem": {"conv": "_conv_stem", "bn": "_bn0"},
                "top": {"conv": "_conv_head", "bn": "_bn1"},
                "classifier": {"classifier": "_fc"},
            }
            return outer[row.unit][row.layer]
        inner = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}.get(row.layer, f"_{row.layer}")
        return f"_blocks.{place.number}.{inner}"
