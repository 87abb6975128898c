"""Every tensor of every variant, as this package names and shapes it. No JAX.

All follows from `VARIANTS`. What other programs call the same tensors is in `layouts`.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from effnet_jax.model.variants import Block, Variant


class Tensor(NamedTuple):
    """One tensor of a model.

    Attributes:
      path: where it is in the variables, such as `params/block1a/se_reduce/kernel`.
      shape: its shape there.
    """

    path: str
    shape: tuple[int, ...]

    @property
    def unit(self) -> str:
        """`stem`, a block's name, `top` or `classifier`."""
        return self.path.split("/")[1]

    @property
    def layer(self) -> str:
        """Of the unit, such as `se_reduce`; the unit's own name where it is one layer."""
        return self.path.split("/")[-2]

    @property
    def leaf(self) -> str:
        """`kernel`, `bias`, or of a batch norm `scale`, `bias`, `mean`, `var`."""
        return self.path.split("/")[-1]

    @property
    def is_norm(self) -> bool:
        """Whether it belongs to a batch norm."""
        return self.layer == "bn" or self.layer.endswith("_bn")

    @property
    def is_depthwise_kernel(self) -> bool:
        """Whether it is a kernel [k, k, 1, C]."""
        return self.layer == "depthwise_conv"


class Place(NamedTuple):
    """Where a block stands: its number among all blocks, its stage, and its number in that, all from 0."""

    number: int
    stage: int
    repeat: int
    block: Block


def places(variant: Variant) -> dict[str, Place]:
    """Returns where each block stands, by its name."""
    found: dict[str, Place] = {}
    for index, block in enumerate(variant.blocks):
        stage = int(block.name.removeprefix("block")[:-1]) - 1
        repeat = sum(place.stage == stage for place in found.values())
        found[block.name] = Place(index, stage, repeat, block)
    return found


def table(variant: Variant, num_classes: int = 1000) -> tuple[Tensor, ...]:
    """Returns every parameter and statistic of a variant, from the input to the output.

    Args:
      variant: the architecture.
      num_classes: the classifier's outputs; 0 leaves the classifier out.
    """
    return tuple(_rows(variant, num_classes))


def _rows(variant: Variant, num_classes: int) -> Iterator[Tensor]:
    stem, top = variant.stem_filters, variant.top_filters
    yield Tensor("params/stem/conv/kernel", (3, 3, 3, stem))
    yield from _batch_norm("stem/bn", stem)
    for block in variant.blocks:
        name, size, inner = block.name, block.kernel_size, block.expanded_filters
        if block.expand_ratio != 1:
            yield Tensor(f"params/{name}/expand_conv/kernel", (1, 1, block.in_filters, inner))
            yield from _batch_norm(f"{name}/expand_bn", inner)
        yield Tensor(f"params/{name}/depthwise_conv/kernel", (size, size, 1, inner))
        yield from _batch_norm(f"{name}/depthwise_bn", inner)
        if block.se_filters:
            for layer, inputs, outputs in (
                ("se_reduce", inner, block.se_filters),
                ("se_expand", block.se_filters, inner),
            ):
                yield Tensor(f"params/{name}/{layer}/kernel", (1, 1, inputs, outputs))
                yield Tensor(f"params/{name}/{layer}/bias", (outputs,))
        yield Tensor(f"params/{name}/project_conv/kernel", (1, 1, inner, block.out_filters))
        yield from _batch_norm(f"{name}/project_bn", block.out_filters)
    yield Tensor("params/top/conv/kernel", (1, 1, variant.blocks[-1].out_filters, top))
    yield from _batch_norm("top/bn", top)
    if num_classes:
        yield Tensor("params/classifier/kernel", (top, num_classes))
        yield Tensor("params/classifier/bias", (num_classes,))


def _batch_norm(path: str, size: int) -> Iterator[Tensor]:
    for collection, leaf in (("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var")):
        yield Tensor(f"{collection}/{path}/{leaf}", (size,))


def parameter_shapes(variant: Variant, num_classes: int) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of every parameter and statistic by its path."""
    return {row.path: row.shape for row in table(variant, num_classes)}
