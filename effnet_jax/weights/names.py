"""The names of every tensor of every variant: parameter paths, TensorFlow's and PyTorch's. No JAX.

The only place that knows other programs' names and layouts. Each row of `table(variant)` is one tensor; all follows
from `VARIANTS`.

Sources: variable scopes of efficientnet_model.py in tensorflow/tpu, models/official/efficientnet; PyTorch's are those
of the packages efficientnet_pytorch and efficientnet_lite_pytorch, whose networks have the same padding (SAME) and the
same batch norm epsilon (1e-3).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from effnet_jax.model.variants import VARIANTS, Variant

EMA_ENDING = "/ExponentialMovingAverage"

# Optimizer slots that TensorFlow stores as `<variable>/<slot>`, and counters without a model's prefix.
_SLOT = re.compile(r"/(RMSProp|Momentum|Adam|LARSOptimizer|Adagrad|Adadelta|Ftrl)(_\d+)?$")
_COUNTER = re.compile(r"^(global_step|beta[12]_power)$")

_SCOPE = r"(?:stem|blocks_\d+|head)"
_MODEL_NAME = re.compile(r"efficientnet[-_](lite\d|b\d|l2)(?![0-9a-z])")


class Tensor(NamedTuple):
    """One tensor of a model, under all its names.

    Attributes:
      path: where it is in the variables, such as `params/block1a/se_reduce/kernel`.
      shape: its shape there.
      tf_name: TensorFlow's name without the model's prefix, such as `blocks_0/se/conv2d/kernel`.
      tf_shape: its shape in a TensorFlow checkpoint.
      torch_name: PyTorch's name, such as `_blocks.0._se_reduce.weight`.
      torch_axes: the transposition that brings PyTorch's axes into the order of `shape`.
    """

    path: str
    shape: tuple[int, ...]
    tf_name: str
    tf_shape: tuple[int, ...]
    torch_name: str
    torch_axes: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Its shape in a PyTorch file."""
        return tuple(self.shape[self.torch_axes.index(axis)] for axis in range(len(self.shape)))

    def from_tf(self, array: np.ndarray) -> np.ndarray:
        """Returns the array in this package's layout."""
        # [k, k, C, 1] and [k, k, 1, C] have the same order in memory; all other layouts agree.
        return array.reshape(self.shape)

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns the array in this package's layout."""
        return np.ascontiguousarray(array.transpose(self.torch_axes))


def table(variant: Variant, num_classes: int = 1000) -> tuple[Tensor, ...]:
    """Returns every parameter and statistic of a variant, from the input to the output.

    Args:
      variant: the architecture.
      num_classes: the classifier's outputs; 0 leaves the classifier out.
    """
    return tuple(_rows(variant, num_classes))


def _rows(variant: Variant, num_classes: int) -> Iterator[Tensor]:
    stem, top = variant.stem_filters, variant.top_filters
    yield _conv("stem/conv", (3, 3, 3, stem), "stem/conv2d", "_conv_stem")
    yield from _batch_norm("stem/bn", stem, "stem/tpu_batch_normalization", "_bn0")
    for index, block in enumerate(variant.blocks):
        scope, torch = f"blocks_{index}", f"_blocks.{index}"
        size, inner = block.kernel_size, block.expanded_filters
        # TensorFlow numbers layers of one kind as they come: without an expansion all following numbers shift by one.
        convs = iter(("conv2d", "conv2d_1"))
        norms = (f"tpu_batch_normalization{number}" for number in ("", "_1", "_2"))
        if block.expand_ratio != 1:
            yield _conv(
                f"{block.name}/expand_conv",
                (1, 1, block.in_filters, inner),
                f"{scope}/{next(convs)}",
                f"{torch}._expand_conv",
            )
            yield from _batch_norm(f"{block.name}/expand_bn", inner, f"{scope}/{next(norms)}", f"{torch}._bn0")
        yield Tensor(
            path=f"params/{block.name}/depthwise_conv/kernel",
            shape=(size, size, 1, inner),
            tf_name=f"{scope}/depthwise_conv2d/depthwise_kernel",
            tf_shape=(size, size, inner, 1),
            torch_name=f"{torch}._depthwise_conv.weight",
            torch_axes=(2, 3, 1, 0),
        )
        yield from _batch_norm(f"{block.name}/depthwise_bn", inner, f"{scope}/{next(norms)}", f"{torch}._bn1")
        if block.se_filters:
            for layer, name, shape in (
                ("se_reduce", "conv2d", (1, 1, inner, block.se_filters)),
                ("se_expand", "conv2d_1", (1, 1, block.se_filters, inner)),
            ):
                yield _conv(f"{block.name}/{layer}", shape, f"{scope}/se/{name}", f"{torch}._{layer}")
                yield _bias(f"{block.name}/{layer}", shape[-1], f"{scope}/se/{name}", f"{torch}._{layer}")
        yield _conv(
            f"{block.name}/project_conv",
            (1, 1, inner, block.out_filters),
            f"{scope}/{next(convs)}",
            f"{torch}._project_conv",
        )
        yield from _batch_norm(f"{block.name}/project_bn", block.out_filters, f"{scope}/{next(norms)}", f"{torch}._bn2")
    yield _conv("top/conv", (1, 1, variant.blocks[-1].out_filters, top), "head/conv2d", "_conv_head")
    yield from _batch_norm("top/bn", top, "head/tpu_batch_normalization", "_bn1")
    if num_classes:
        classes = (top, num_classes)
        yield Tensor("params/classifier/kernel", classes, "head/dense/kernel", classes, "_fc.weight", (1, 0))
        yield _bias("classifier", num_classes, "head/dense", "_fc")


def _conv(path: str, shape: tuple[int, ...], tf: str, torch: str) -> Tensor:
    return Tensor(f"params/{path}/kernel", shape, f"{tf}/kernel", shape, f"{torch}.weight", (2, 3, 1, 0))


def _bias(path: str, size: int, tf: str, torch: str) -> Tensor:
    return Tensor(f"params/{path}/bias", (size,), f"{tf}/bias", (size,), f"{torch}.bias", (0,))


def _batch_norm(path: str, size: int, tf: str, torch: str) -> Iterator[Tensor]:
    for ours, theirs, torchs in (
        (f"params/{path}/scale", "gamma", "weight"),
        (f"params/{path}/bias", "beta", "bias"),
        (f"batch_stats/{path}/mean", "moving_mean", "running_mean"),
        (f"batch_stats/{path}/var", "moving_variance", "running_var"),
    ):
        yield Tensor(ours, (size,), f"{tf}/{theirs}", (size,), f"{torch}.{torchs}", (0,))


def is_classifier(name: str) -> bool:
    """Returns whether a name of the table, TensorFlow's or PyTorch's, is one of the classifier's."""
    return name.startswith(("head/dense/", "_fc."))


def classes_in(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns the number of the classifier's outputs, 0 where there is none.

    Args:
      shapes: of the arrays of a file, by the table's name, TensorFlow's or PyTorch's.
    """
    for kernel, axis in (("head/dense/kernel", 1), ("_fc.weight", 0)):
        if len(shapes.get(kernel, ())) == 2:
            return shapes[kernel][axis]
    return 0


def parameter_shapes(variant: Variant, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter and statistic by its path."""
    return {row.path: row.shape for row in table(variant, num_classes)}


def model_prefixes(names: Iterable[str]) -> list[str]:
    """Returns what stands before the first layer's name (`efficientnet-b0/`, or nothing), for each model in a file."""
    found = {match[1] for name in names if (match := re.fullmatch(rf"(.*/|)stem/conv2d/kernel(?:{EMA_ENDING})?", name))}
    return sorted(found)


def canonical(name: str, prefix: str) -> str | None:
    """Returns a variable's name as the table has it, or None if it is not one of the model.

    The prefix goes, and `batch_normalization` (checkpoints trained with LARS) becomes `tpu_batch_normalization`.
    """
    if not name.startswith(prefix) or not re.match(_SCOPE + "/", name[len(prefix) :]):
        return None
    return re.sub(r"/batch_normalization(?=[_/])", "/tpu_batch_normalization", name[len(prefix) :])


def is_scope(part: str) -> bool:
    """Returns whether a part of a variable's name is where the model's own names begin."""
    return bool(re.fullmatch(_SCOPE, part))


def is_bookkeeping(name: str) -> bool:
    """Returns whether a TensorFlow variable belongs to training alone: a counter or an optimizer's slot."""
    return bool(_SLOT.search(name.removesuffix(EMA_ENDING)) or _COUNTER.match(name))


def is_torch_bookkeeping(name: str) -> bool:
    """Returns whether a PyTorch tensor belongs to training alone."""
    return name.endswith(".num_batches_tracked")


def variant_in_name(name: str) -> str | None:
    """Returns the variant that a model's or file's name states (`efficientnet-b1`), if it does."""
    found = {match for match in _MODEL_NAME.findall(name.lower()) if match in VARIANTS}
    return found.pop() if len(found) == 1 else None
