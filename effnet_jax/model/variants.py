"""The variants of EfficientNet as plain data: widths, depths, resolutions and blocks. No JAX.

Source: `efficientnet_builder.py` and `lite/efficientnet_lite_builder.py` in tensorflow/tpu,
models/official/efficientnet; the scaling is section 3 of Tan and Le, "EfficientNet" (2019).
"""

import dataclasses
import math
import string

from effnet_jax.errors import VariantError, nearest

# The survival probability of the deepest block; the others are linear in their depth (`Block.survival_prob`).
SURVIVAL_PROB = 0.8

# The last and the first convolution of b0; scaled by the width except in the lite variants.
STEM_FILTERS = 32
TOP_FILTERS = 1280


@dataclasses.dataclass(frozen=True)
class Block:
    """One MBConv block. Names run `block1a`, `block2a`, `block2b`, …: the stage, then a letter."""

    name: str
    kernel_size: int
    stride: int
    expand_ratio: int
    in_filters: int
    out_filters: int
    se_filters: int  # 0: no squeeze-and-excite
    survival_prob: float  # of stochastic depth, in training

    @property
    def expanded_filters(self) -> int:
        return self.in_filters * self.expand_ratio

    @property
    def skip(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.stride == 1 and self.in_filters == self.out_filters


@dataclasses.dataclass(frozen=True)
class Variant:
    """An architecture: everything that the network's code needs to know about it."""

    name: str
    width: float
    depth: float
    resolution: int  # pixels, the side of the square that it was designed for
    dropout: float  # rate before the classifier
    stem_filters: int
    top_filters: int
    blocks: tuple[Block, ...]
    lite: bool  # relu6 instead of swish, no squeeze-and-excite

    @property
    def units(self) -> tuple[str, ...]:
        """What can be frozen, from the input to the output: `stem`, every block, `top`, `classifier`."""
        return ("stem", *(block.name for block in self.blocks), "top", "classifier")

    @property
    def levels(self) -> tuple["Level", ...]:
        """The last block of each stride, 2 to 32: the original's `reduction_1` to `reduction_5`."""
        found: dict[int, Level] = {}
        stride = 2  # the stem's
        for block in self.blocks:
            stride *= block.stride
            found[stride] = Level(block.name, stride, block.out_filters)
        return tuple(found.values())


@dataclasses.dataclass(frozen=True)
class Level:
    """Where features of one stride are: the unit, the stride in pixels, and how many channels."""

    unit: str
    stride: int
    channels: int


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A stage of b0, before scaling."""

    repeats: int
    kernel_size: int
    stride: int
    expand_ratio: int
    out_filters: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)

# name: (width, depth, resolution, dropout)
_SCALES = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
    "b8": (2.2, 3.6, 672, 0.5),
    "l2": (4.3, 5.3, 800, 0.5),
    "lite0": (1.0, 1.0, 224, 0.2),
    "lite1": (1.0, 1.1, 240, 0.2),
    "lite2": (1.1, 1.2, 260, 0.3),
    "lite3": (1.2, 1.4, 280, 0.3),
    "lite4": (1.4, 1.8, 300, 0.3),
}


def round_filters(filters: int, width: float) -> int:
    """Scales a channel count by the width, to a multiple of 8 that is never more than 10 % below.

    Source: `round_filters` in efficientnet_model.py (its divisor is 8 for every variant).
    """
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    if rounded < 0.9 * scaled:
        rounded += 8
    return rounded


def round_repeats(repeats: int, depth: float) -> int:
    """Scales the number of blocks of a stage by the depth, upwards."""
    return math.ceil(depth * repeats)


def _make_variant(name: str) -> Variant:
    width, depth, resolution, dropout = _SCALES[name]
    lite = name.startswith("lite")
    stem_filters = STEM_FILTERS if lite else round_filters(STEM_FILTERS, width)
    top_filters = TOP_FILTERS if lite else round_filters(TOP_FILTERS, width)

    def repeats(index: int) -> int:
        # The lite variants keep the first and the last stage unscaled.
        fixed = lite and index in (0, len(_STAGES) - 1)
        return _STAGES[index].repeats if fixed else round_repeats(_STAGES[index].repeats, depth)

    total = sum(repeats(index) for index in range(len(_STAGES)))
    blocks: list[Block] = []
    in_filters = stem_filters
    for index, stage in enumerate(_STAGES):
        out_filters = round_filters(stage.out_filters, width)
        for repeat in range(repeats(index)):
            blocks.append(
                Block(
                    name=f"block{index + 1}{string.ascii_lowercase[repeat]}",
                    kernel_size=stage.kernel_size,
                    stride=stage.stride if repeat == 0 else 1,
                    expand_ratio=stage.expand_ratio,
                    in_filters=in_filters,
                    out_filters=out_filters,
                    # A quarter of the block's input width, not of the expanded one.
                    se_filters=0 if lite else max(1, int(in_filters * 0.25)),
                    survival_prob=1.0 - (1.0 - SURVIVAL_PROB) * len(blocks) / total,
                )
            )
            in_filters = out_filters
    return Variant(name, width, depth, resolution, dropout, stem_filters, top_filters, tuple(blocks), lite)


VARIANTS: dict[str, Variant] = {name: _make_variant(name) for name in _SCALES}


def get_variant(name: str) -> Variant:
    """Returns the variant of that name.

    Raises:
      VariantError: no such variant; the message has the nearest names.
    """
    try:
        return VARIANTS[name]
    except (KeyError, TypeError):
        raise VariantError(f"there is no variant {name!r}: {nearest(str(name), VARIANTS)}") from None


@dataclasses.dataclass(frozen=True)
class Family:
    """A recipe of published weights: what its weights expect of their input."""

    name: str
    normalization: str  # a key of `NORMALIZATIONS`
    crop: str  # the evaluation crop that its published accuracies were measured with
    variants: tuple[str, ...]
    description: str


# name: (mean, scale), for pixels 0..255 in RGB: the network sees (pixels - mean) / scale.
NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "advprop": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "lite": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
    "unit": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

_B0_TO_B8 = tuple(f"b{index}" for index in range(9))
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("imagenet", "imagenet", "pad32", _B0_TO_B8, "baseline, AutoAugment and RandAugment checkpoints"),
        Family("noisy_student", "imagenet", "pad32", (*_B0_TO_B8[:8], "l2"), "Noisy Student checkpoints"),
        Family("advprop", "advprop", "pad32", _B0_TO_B8, "AdvProp checkpoints"),
        Family("lite", "lite", "pad32", ("lite0", "lite1", "lite2", "lite3", "lite4"), "EfficientNet-Lite checkpoints"),
    )
}


def get_family(name: str) -> Family:
    """Returns the family of that name.

    Raises:
      VariantError: no such family; the message has the nearest names.
    """
    try:
        return FAMILIES[name]
    except (KeyError, TypeError):
        raise VariantError(f"there is no family {name!r}: {nearest(str(name), FAMILIES)}") from None
