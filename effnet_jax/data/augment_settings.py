"""The settings of augmentation: their names, defaults and bounds, checked before anything runs."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

from effnet_jax.choices import INTERPOLATIONS
from effnet_jax.data.policies import POLICIES
from effnet_jax.errors import ConfigError, nearest

POLICY_PLACES = ("resolution", "source")
MAX_MAGNITUDE = 30  # of RandAugment; the published weights used up to 28


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """What augmentation does; everything is off by default.

    Attributes:
      flip: mirror left to right, for half of the views.
      shift: up to this fraction of the view's side, along each axis.
      rotate: up to this many degrees, both ways.
      shear: up to this many degrees, along each axis.
      zoom: magnification between 1 - zoom and 1 + zoom (a fraction), or between two bounds (low, high); log-uniform.
      crop: bounds of the share of the area that a random resized crop shows; None: the largest centre square.
      interpolation: `"bicubic"` (TensorFlow 1's, as in evaluation) or `"bilinear"`.
      brightness: factor between 1 - brightness and 1 + brightness.
      contrast: likewise, about the mean grey of the view.
      saturation: likewise, about the grey of each pixel.
      policy: AutoAugment: `"v0"` (ImageNet's), `"cifar10"`, or `""` for none.
      randaugment: (layers, magnitude), such as (2, 10); None: off.
      trivialaugment: one operation an image, of a strength drawn for it: TrivialAugment's wide space.
      policy_at: where the three above run: at `"resolution"` (as the original) or at the `"source"`'s own size, which
        is cheaper for small images.
      mixup: alpha of the Beta distribution of the weights; 0: off.
      cutmix: alpha of the Beta distribution of the kept area; 0: off. With mixup too, each example draws one of them.
      erase: probability that a random rectangle (2 to 33 % of the view) gets a random colour.
      cutout: side in pixels of a grey square at a random place; 0: off.
      label_smoothing: share of the target that is spread over all classes.
    """

    flip: bool = False
    shift: float = 0.0
    rotate: float = 0.0
    shear: float = 0.0
    zoom: float | tuple[float, float] = 0.0
    crop: tuple[float, float] | None = None
    interpolation: str = "bicubic"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    policy: str = ""
    randaugment: tuple[int, int] | None = None
    trivialaugment: bool = False
    policy_at: str = "resolution"
    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0
    cutout: int = 0
    label_smoothing: float = 0.0

    @property
    def policies(self) -> list[str]:
        """Which of AutoAugment, RandAugment and TrivialAugment are on."""
        return [name for name in ("policy", "randaugment", "trivialaugment") if getattr(self, name)]

    @property
    def straight(self) -> bool:
        """Whether views keep the axes' directions, so that resampling is separable."""
        return not self.rotate and not self.shear

    @property
    def zoom_bounds(self) -> tuple[float, float]:
        """The least and the largest magnification."""
        return self.zoom if isinstance(self.zoom, tuple) else (1 - self.zoom, 1 + self.zoom)


# Name -> (least, below or up to this, whether the upper bound itself is allowed).
_NUMBERS: dict[str, tuple[float, float, bool]] = {
    "shift": (0, 1, True),
    "rotate": (0, 180, True),
    "shear": (0, 60, True),
    "brightness": (0, 1, True),
    "contrast": (0, 1, True),
    "saturation": (0, 1, True),
    "mixup": (0, 100, True),
    "cutmix": (0, 100, True),
    "erase": (0, 1, True),
    "label_smoothing": (0, 1, False),
}


def read_settings(settings: Mapping[str, Any], *, where: str = "augment") -> AugmentSettings:
    """Checks settings as a config gives them.

    Args:
      settings: name -> value; names that are left out keep their defaults.
      where: what messages call the mapping, such as `phases[1].augment`.

    Returns:
      The complete settings.

    Raises:
      ConfigError: an unknown name, a wrong type, a value out of range, or two settings that exclude each other.
    """
    names = [field.name for field in dataclasses.fields(AugmentSettings)]
    for name in settings:
        if name not in names:
            raise ConfigError(f"{where} has no setting {name!r}: {nearest(str(name), names)}")
    values = {name: _checked(f"{where}.{name}", name, value) for name, value in settings.items()}
    result = AugmentSettings(**values)
    if len(result.policies) > 1:
        given = " and ".join(f"{name}={getattr(result, name)!r}" for name in result.policies)
        raise ConfigError(f"{where} has {'both ' * (len(result.policies) == 2)}{given}: keep one of them")
    return result


def _checked(place: str, name: str, value: Any) -> Any:
    if name in _NUMBERS:
        least, most, closed = _NUMBERS[name]
        number = _number(place, value)
        if not (least <= number <= most and (closed or number < most)):
            raise ConfigError(f"{place} is {value}: it must be from {least} to {'' if closed else 'below '}{most}")
        return number
    if name in ("flip", "trivialaugment"):
        if not isinstance(value, bool):
            raise ConfigError(f"{place} is {value!r}: it must be True or False")
        return value
    if name in ("interpolation", "policy", "policy_at"):
        choices = {"interpolation": INTERPOLATIONS, "policy": ("", *POLICIES), "policy_at": POLICY_PLACES}[name]
        if name == "policy" and value is None:
            return ""
        if value not in choices:
            raise ConfigError(f"{place} is {value!r}: {nearest(value, [choice for choice in choices if choice])}")
        return value
    if name == "cutout":
        if not _is_whole(value) or value < 0:
            raise ConfigError(f"{place} is {value!r}: it must be a whole number of pixels, 0 for none")
        return int(value)
    return {"zoom": _zoom, "crop": _crop, "randaugment": _randaugment}[name](place, value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _number(place: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ConfigError(f"{place} is {value!r}: it must be a number")
    return float(value)


def _pair(place: str, value: Any, meaning: str) -> tuple[Any, Any]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ConfigError(f"{place} is {value!r}: it must be two numbers ({meaning})")
    return value[0], value[1]


def _zoom(place: str, value: Any) -> float | tuple[float, float]:
    if not isinstance(value, tuple | list):
        fraction = _number(place, value)
        if not 0 <= fraction <= 0.9:
            raise ConfigError(f"{place} is {value}: a fraction must be from 0 to 0.9, or give (low, high)")
        return fraction
    low, high = (_number(place, bound) for bound in _pair(place, value, "low, high"))
    if not 0.1 <= low <= high <= 10:
        raise ConfigError(f"{place} is ({low:g}, {high:g}): it must be 0.1 <= low <= high <= 10; 1 keeps the size")
    return low, high


def _crop(place: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (_number(place, bound) for bound in _pair(place, value, "least and largest share of the area"))
    if not 0 < low <= high <= 1:
        raise ConfigError(f"{place} is ({low:g}, {high:g}): it must be 0 < least <= largest <= 1, shares of the area")
    return low, high


def _randaugment(place: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    layers, magnitude = _pair(place, value, "layers, magnitude")
    if not (_is_whole(layers) and _is_whole(magnitude)):
        raise ConfigError(f"{place} is {value!r}: layers and magnitude must be whole numbers, such as (2, 10)")
    if not (1 <= layers <= 8 and 0 <= magnitude <= MAX_MAGNITUDE):
        raise ConfigError(f"{place} is {tuple(value)}: 1 to 8 layers, and a magnitude from 0 to {MAX_MAGNITUDE}")
    return int(layers), int(magnitude)
