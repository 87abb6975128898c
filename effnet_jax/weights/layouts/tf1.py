"""TensorFlow's checkpoints, as the original code writes them.

Source: variable scopes of efficientnet_model.py in tensorflow/tpu, models/official/efficientnet. Layers of one kind are
numbered as they come, so that a block without an expansion has other numbers. Training checkpoints hold the moving
average of each variable beside it, and those trained with LARS call batch norm without `tpu_`.
"""

import re
from collections.abc import Iterable, Mapping

from effnet_jax.errors import CheckpointError
from effnet_jax.model.variants import VARIANTS, Variant
from effnet_jax.weights import names
from effnet_jax.weights.checkpoint import Entry
from effnet_jax.weights.layouts.base import Collected, Layout, Stored

EMA_ENDING = "/ExponentialMovingAverage"

# Optimizer slots that TensorFlow stores as `<variable>/<slot>`, and counters without a model's prefix.
_SLOT = re.compile(r"/(RMSProp|Momentum|Adam|LARSOptimizer|Adagrad|Adadelta|Ftrl)(_\d+)?$")
_COUNTER = re.compile(r"^(global_step|beta[12]_power)$")
_SCOPE = re.compile(r"(?:stem|blocks_\d+|head)")
_FIRST = re.compile(rf"(.*/|)stem/conv2d/kernel(?:{EMA_ENDING})?")
_MODEL_NAME = re.compile(r"efficientnet[-_](lite\d|b\d|l2)(?![0-9a-z])")

_LEAVES = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


class TF1(Layout):
    """See the module."""

    name = "tf1"
    program = "tensorflow/tpu's EfficientNet code"

    def recognises(self, stored: Iterable[str]) -> bool:
        return any(_FIRST.fullmatch(name) for name in stored)

    def table(self, variant: Variant, num_classes: int) -> tuple[Stored, ...]:
        places = names.places(variant)
        return tuple(_stored(row, places.get(row.unit)) for row in names.table(variant, num_classes))

    def collect(self, entries: Mapping[str, Entry], where: str, ema: bool) -> Collected:
        prefixes = model_prefixes(entries)
        if len(prefixes) != 1:
            raise CheckpointError(
                f"{where} holds {len(prefixes)} models: {', '.join(map(repr, prefixes))}; give a checkpoint of one "
                f"model, as {self.program} writes it"
            )
        (prefix,) = prefixes
        twins: dict[str, dict[bool, str]] = {}
        unused, unexpected = [], []
        for name in entries:
            averaged = name.endswith(EMA_ENDING)
            known = canonical(name.removesuffix(EMA_ENDING), prefix)
            if self.is_bookkeeping(name):
                unused.append(name)
            elif known is None:
                unexpected.append(name)
            else:
                twins.setdefault(known, {})[averaged] = name
        taken = {}
        for known, stored in twins.items():
            if ema in stored or (ema and False in stored):
                taken[known] = stored.pop(ema) if ema in stored else stored.pop(False)
            unused.extend(stored.values())
        count = sum(name.endswith(EMA_ENDING) for name in taken.values())
        return Collected(taken, unused, unexpected, variant_in_name(prefix), count)

    def is_bookkeeping(self, name: str) -> bool:
        return bool(_SLOT.search(name.removesuffix(EMA_ENDING)) or _COUNTER.match(name))


def _stored(row: names.Tensor, place: names.Place | None) -> Stored:
    scope = {"stem": "stem", "top": "head", "classifier": "head"}.get(row.unit) or f"blocks_{place and place.number}"
    expands = place is not None and place.block.expand_ratio != 1
    if row.is_norm:
        order = ("expand_bn", "depthwise_bn", "project_bn") if expands else ("depthwise_bn", "project_bn")
        number = order.index(row.layer) if place else 0
        layer = f"tpu_batch_normalization{f'_{number}' if number else ''}"
        return Stored(row, f"{scope}/{layer}/{_LEAVES[row.leaf]}", row.shape)
    if row.is_depthwise_kernel:  # [k, k, C, 1] has the same order in memory
        size, _, _, channels = row.shape
        return Stored(row, f"{scope}/depthwise_conv2d/depthwise_kernel", (size, size, channels, 1))
    layer = {
        "classifier": "dense",
        "se_reduce": "se/conv2d",
        "se_expand": "se/conv2d_1",
        "project_conv": "conv2d_1" if expands else "conv2d",
    }.get(row.layer, "conv2d")
    return Stored(row, f"{scope}/{layer}/{row.leaf}", row.shape)


def model_prefixes(stored: Iterable[str]) -> list[str]:
    """Returns what stands before the first layer's name (`efficientnet-b0/`, or nothing), for each model in a file."""
    return sorted({match[1] for name in stored if (match := _FIRST.fullmatch(name))})


def canonical(name: str, prefix: str) -> str | None:
    """Returns a variable's name as the table has it, or None if it is not one of the model.

    The prefix goes, and `batch_normalization` (checkpoints trained with LARS) becomes `tpu_batch_normalization`.
    """
    if not name.startswith(prefix) or not re.match(_SCOPE.pattern + "/", name[len(prefix) :]):
        return None
    return re.sub(r"/batch_normalization(?=[_/])", "/tpu_batch_normalization", name[len(prefix) :])


def is_scope(part: str) -> bool:
    """Returns whether a part of a variable's name is where the model's own names begin."""
    return bool(_SCOPE.fullmatch(part))


def variant_in_name(name: str) -> str | None:
    """Returns the variant that a model's or file's name states (`efficientnet-b1`), if it does."""
    found = {match for match in _MODEL_NAME.findall(name.lower()) if match in VARIANTS}
    return found.pop() if len(found) == 1 else None
