"""What a weights dir says about itself: `metadata.json`."""

import dataclasses
import importlib.metadata
import importlib.resources
import json
import os
import platform
from pathlib import Path
from typing import Any

from etils import epath

from effnet_jax import files
from effnet_jax.cache import cache_folder
from effnet_jax.choices import CROPS, EVALUATIONS, RESIZES
from effnet_jax.errors import WeightsError
from effnet_jax.model.variants import FAMILIES, NORMALIZATIONS, VARIANTS

METADATA_FILE = "metadata.json"
FORMAT = 1

_PACKAGES = ("effnet-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Everything that using a model's weights asks for, and where they came from.

    Attributes:
      variant: the architecture, a key of `VARIANTS`.
      family: the recipe, a key of `FAMILIES`.
      normalization: how pixels 0..255 are scaled, a key of `NORMALIZATIONS`.
      crop: the evaluation's crop rule: `"pad32"`, `"frac"` or `"none"`.
      evaluation: `"crop"`: a centre square of photographs; `"resize"`: whole images, as small ones are seen.
      resize: `"bicubic"`: as the original resizes; `"antialias"`: with smoothing (`data.view.EvaluationView`).
      resolution: side of the images that the weights were made for, in pixels.
      num_classes: outputs of the classifier; 0 without one.
      class_names: one for each class, or none.
      temperature: what logits are divided by before they are probabilities (`metrics.calibration`).
      ema: whether the values are moving averages; None where the source does not say.
      source: where the weights came from: for a ported file its `name`, `sha256` by file, and how many `tensors` were
        `ema` and `raw`; for trained weights `run`, `config` and `parent`.
      versions: of Python and the packages that wrote them.
      checksums: CRC-32C of each parameter's and statistic's bytes, by path.
    """

    variant: str
    family: str
    normalization: str
    crop: str
    resolution: int
    num_classes: int
    class_names: tuple[str, ...] = ()
    evaluation: str = "crop"
    resize: str = "bicubic"
    temperature: float = 1.0
    ema: bool | None = None
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    checksums: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the contents of `metadata.json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, path: epath.Path) -> "Metadata":
        """Reads the contents of `metadata.json`.

        Args:
          text: the contents.
          path: the file, for messages.

        Raises:
          WeightsError: it is damaged, or of a newer format.
        """
        restore = cure_of(path)
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{path} is damaged ({error}): {restore}") from None
        version = values.pop("format", None)
        if isinstance(version, int) and version > FORMAT:
            raise WeightsError(
                f"{path} is of format {version}, and this version of effnet_jax reads formats up to {FORMAT}: "
                "upgrade effnet_jax (pip install --upgrade effnet-jax)"
            )
        try:
            if version != FORMAT:
                raise ValueError(f"its format is {version!r} instead of {FORMAT}")
            values["class_names"] = tuple(values.get("class_names", ()))
            if values.get("resize") == "direct":  # as it was called at first
                values |= {"evaluation": "resize", "resize": "bicubic"}
            metadata = cls(**values)
            metadata._check()
        except (TypeError, ValueError) as error:
            reason = str(error).replace("Metadata.__init__() ", "")
            raise WeightsError(f"{path} is damaged ({reason}): {restore}") from None
        return metadata

    def _check(self) -> None:
        """Raises ValueError at the first value that no writer of this format leaves."""
        known: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("variant", tuple(VARIANTS)),
            ("family", tuple(FAMILIES)),
            ("normalization", tuple(NORMALIZATIONS)),
            ("crop", CROPS),
            ("evaluation", EVALUATIONS[1:]),
            ("resize", RESIZES),
        )
        for key, choices in known:
            if getattr(self, key) not in choices:
                raise ValueError(f"its {key} is {getattr(self, key)!r}, none of {', '.join(choices)}")
        for key, least in (("resolution", 1), ("num_classes", 0)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"its {key} is {value!r}")
        if not isinstance(self.temperature, int | float) or not 0.0 < self.temperature < 1e6:
            raise ValueError(f"its temperature is {self.temperature!r}")
        if self.ema not in (True, False, None):
            raise ValueError(f"its ema is {self.ema!r}")
        if not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("a class name is no text")
        if len(self.class_names) not in (0, self.num_classes):
            raise ValueError(f"it has {len(self.class_names)} class names for {self.num_classes} classes")
        for key in ("source", "versions", "checksums"):
            if not isinstance(getattr(self, key), dict):
                raise ValueError(f"its {key} is {getattr(self, key)!r}")


def cure_of(path: epath.PathLike) -> str:
    """How a damaged weights dir is made good; one of the cache is made anew.

    Args:
      path: of it, or of a file in it.
    """
    place, cache = Path(os.fspath(path)), cache_folder("weights")
    if cache in place.parents:
        folder = cache / place.relative_to(cache).parts[0]
        return f"remove {folder}, and it is made again when it is next asked for"
    return "restore the weights dir from a copy, or port the weights again"


def check_output(path: epath.PathLike) -> epath.Path:
    """Returns the path of a weights dir to be written, absolute.

    Raises:
      WeightsError: something is there already.
    """
    place = files.absolute(path)
    if place.exists() or (files.is_local(place) and os.path.islink(place)):
        raise WeightsError(f"the output {place} exists already: give another name, or delete it first")
    return place


def current_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that numbers depend on, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a source tree on the path, not installed
    return versions


def imagenet_class_names(num_classes: int) -> tuple[str, ...]:
    """Returns short English names of the ImageNet classes, in the order of the published classifiers.

    Args:
      num_classes: 1000, or 1001 for classifiers with `background` first; for other numbers there are no names.
    """
    if num_classes not in (1000, 1001):
        return ()
    names = importlib.resources.files("effnet_jax.weights").joinpath("imagenet_classes.txt").read_text("utf-8")
    return ("background",) * (num_classes - 1000) + tuple(names.splitlines())
