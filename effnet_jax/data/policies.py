"""The tables of AutoAugment and RandAugment, and the arguments that their levels stand for: plain data, no JAX."""

import dataclasses
import math
from typing import NamedTuple

MAX_LEVEL = 10

# The operations that RandAugment draws from, in the original's order; "Identity" is what an operation becomes that
# its probability leaves out.
OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)
IDENTITY = "Identity"
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")  # a fair coin decides the argument's sign


class Step(NamedTuple):
    """One operation of a sub-policy."""

    operation: str
    probability: float
    level: int


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the largest level means, where the original code's programs differ.

    Attributes:
      translate: pixels of a translation at level 10.
      cutout: half the side of Cutout's square at level 10.
      solarize_down: whether a higher Solarize level means a lower threshold (the AutoAugment paper's own code).
    """

    translate: float
    cutout: float
    solarize_down: bool = False


AUTOAUGMENT_SCALE = Scale(translate=250, cutout=100)
RANDAUGMENT_SCALE = Scale(translate=100, cutout=40)

_V0 = """
Equalize 0.8 1, ShearY 0.8 4
Color 0.4 9, Equalize 0.6 3
Color 0.4 1, Rotate 0.6 8
Solarize 0.8 3, Equalize 0.4 7
Solarize 0.4 2, Solarize 0.6 2
Color 0.2 0, Equalize 0.8 8
Equalize 0.4 8, SolarizeAdd 0.8 3
ShearX 0.2 9, Rotate 0.6 8
Color 0.6 1, Equalize 1.0 2
Invert 0.4 9, Rotate 0.6 0
Equalize 1.0 9, ShearY 0.6 3
Color 0.4 7, Equalize 0.6 0
Posterize 0.4 6, AutoContrast 0.4 7
Solarize 0.6 8, Color 0.6 9
Solarize 0.2 4, Rotate 0.8 9
Rotate 1.0 7, TranslateY 0.8 9
ShearX 0.0 0, Solarize 0.8 4
ShearY 0.8 0, Color 0.6 4
Color 1.0 0, Rotate 0.6 2
Equalize 0.8 4, Equalize 0.0 8
Equalize 1.0 4, AutoContrast 0.6 2
ShearY 0.4 7, SolarizeAdd 0.6 7
Posterize 0.8 2, Solarize 0.6 10
Solarize 0.6 8, Equalize 0.6 1
Color 0.8 6, Rotate 0.4 5
"""

_CIFAR10 = """
Invert 0.1 7, Contrast 0.2 6
Rotate 0.7 2, TranslateX 0.3 9
Sharpness 0.8 1, Sharpness 0.9 3
ShearY 0.5 8, TranslateY 0.7 9
AutoContrast 0.5 8, Equalize 0.9 2
ShearY 0.2 7, Posterize 0.3 7
Color 0.4 3, Brightness 0.6 7
Sharpness 0.3 9, Brightness 0.7 9
Equalize 0.6 5, Equalize 0.5 1
Contrast 0.6 7, Sharpness 0.6 5
Color 0.7 7, TranslateX 0.5 8
Equalize 0.3 7, AutoContrast 0.4 8
TranslateY 0.4 3, Sharpness 0.2 6
Brightness 0.9 6, Color 0.2 8
Solarize 0.5 2, Invert 0.0 3
Equalize 0.2 0, AutoContrast 0.6 0
Equalize 0.2 8, Equalize 0.6 4
Color 0.9 9, Equalize 0.6 6
AutoContrast 0.8 4, Solarize 0.2 8
Brightness 0.1 3, Color 0.7 0
Solarize 0.4 5, AutoContrast 0.9 3
TranslateY 0.9 9, TranslateY 0.7 9
AutoContrast 0.9 2, Solarize 0.8 3
Equalize 0.8 8, Invert 0.1 3
TranslateY 0.7 9, AutoContrast 0.9 1
"""


TRIVIAL_BINS = 31
# Operations of TrivialAugment's wide space and the largest strength of each: Müller and Hutter, "TrivialAugment"
# (ICCV 2021), table 7; slopes, pixels at every size, degrees, and how far a factor is from 1.
_TRIVIAL = {
    IDENTITY: 0.0,
    "ShearX": 0.99,
    "ShearY": 0.99,
    "TranslateX": 32.0,
    "TranslateY": 32.0,
    "Rotate": 135.0,
    "Brightness": 0.99,
    "Color": 0.99,
    "Contrast": 0.99,
    "Sharpness": 0.99,
    "Posterize": 6.0,  # bits that are taken off at most: 2 stay
    "Solarize": 255.0,
    "AutoContrast": 0.0,
    "Equalize": 0.0,
}
TRIVIAL_OPERATIONS = tuple(_TRIVIAL)


def trivial_arguments(operation: str, strength: int) -> tuple[float, float]:
    """The arguments of one of TrivialAugment's operations with the negative and the positive sign.

    Args:
      operation: one of `TRIVIAL_OPERATIONS`.
      strength: 0 to `TRIVIAL_BINS` - 1.

    Returns:
      Both as `level_argument` gives them; twice the same where a sign means nothing.
    """
    value = _TRIVIAL[operation] * strength / (TRIVIAL_BINS - 1)
    if operation in SIGNED:
        return -value, value
    if operation in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 1 - value, 1 + value
    if operation == "Posterize":
        value = 8 - round(value)
    if operation == "Solarize":
        value = math.trunc(255 - value)
    return value, value


def _parsed(table: str) -> tuple[tuple[Step, Step], ...]:
    rows = []
    for line in table.strip().splitlines():
        first, second = (
            Step(name, float(chance), int(level)) for name, chance, level in map(str.split, line.split(","))
        )
        rows.append((first, second))
    return tuple(rows)


# name -> 25 sub-policies. `v0`: `policy_v0` of the original code (`autoaugment.py` in tensorflow/tpu,
# models/official/efficientnet), found on ImageNet. `cifar10`: table 7 of the AutoAugment paper (Cubuk et al.,
# arXiv 1805.09501), found on CIFAR-10 and used for CIFAR-100 there too.
POLICIES: dict[str, tuple[tuple[Step, Step], ...]] = {"v0": _parsed(_V0), "cifar10": _parsed(_CIFAR10)}


def policy_scale(policy: str, side: int) -> Scale:
    """What levels mean for images of a size.

    The original code's constants are pixels of views of 224 and larger. On smaller images they are taken in
    proportion: as pixels they would move most of the image away. CIFAR-10's policy was found at 32 pixels with
    translations of up to 10 and is in proportion at every size, with thresholds of Solarize that fall with the level,
    as in the code that it was found with.

    Args:
      policy: a name of `POLICIES`, or "" for RandAugment.
      side: of the images that it runs on.

    Returns:
      The scale.
    """
    if policy == "cifar10":
        return Scale(translate=side * 10 / 32, cutout=side * 20 / 32, solarize_down=True)
    scale = AUTOAUGMENT_SCALE if policy else RANDAUGMENT_SCALE
    share = min(1.0, side / 224)
    return Scale(translate=scale.translate * share, cutout=scale.cutout * share)


def level_argument(operation: str, level: float, scale: Scale) -> float:
    """The argument of an operation at a level, before a sign is drawn (0.0 for an operation without one).

    Args:
      operation: one of `OPERATIONS`.
      level: 0 to `MAX_LEVEL`; RandAugment's magnitude may go beyond.
      scale: what the largest level means.

    Returns:
      Degrees for Rotate, bits for Posterize, a threshold for Solarize, an addend for SolarizeAdd, a factor for
      Color, Contrast, Brightness and Sharpness, a slope for ShearX and ShearY, pixels for TranslateX, TranslateY and
      Cutout.
    """
    share = level / MAX_LEVEL
    match operation:
        case "Rotate":
            return share * 30
        case "Posterize":
            return math.trunc(share * 4)
        case "Solarize":
            return 256 - math.trunc(share * 256) if scale.solarize_down else math.trunc(share * 256)
        case "SolarizeAdd":
            return math.trunc(share * 110)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return share * 1.8 + 0.1
        case "ShearX" | "ShearY":
            return share * 0.3
        case "TranslateX" | "TranslateY":
            return share * scale.translate
        case "Cutout":
            return math.trunc(share * scale.cutout)
    return 0.0
