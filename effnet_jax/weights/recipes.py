"""What is known of the weights in a file: from the table of published ones, from the file, from its name."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from effnet_jax.errors import CheckpointError, VariantError
from effnet_jax.model.variants import FAMILIES, Family, Variant, get_family
from effnet_jax.weights.checkpoint import Checkpoint
from effnet_jax.weights.metadata import imagenet_class_names
from effnet_jax.weights.published import NUM_CLASSES, Published, table

if TYPE_CHECKING:
    from effnet_jax.weights.port import Plan

# What file names say about the family, the more telling first. Folder names count only where they are those of the
# published bucket: `imagenet` above a file may be the name of a data set.
_FAMILY_IN_FILE = (
    ("noisy_student", re.compile(r"noisy[-_]?student")),
    ("advprop", re.compile(r"advprop|^adv-")),
    ("imagenet", re.compile(r"imagenet|rand[-_]?aug|auto[-_]?aug|ckptsaug")),
)
_FAMILY_IN_FOLDER = {
    "ckpts": "imagenet",
    "ckptsaug": "imagenet",
    "randaug": "imagenet",
    "advprop": "advprop",
    "noisystudent": "noisy_student",
}


# timm's networks of other padding and epsilon, whose tensors have the same names.
_OTHER_NETWORK = re.compile(r"(?:mixnet|efficientnet(?:v2)?)_(?:b\d|lite\d|l2|e[sml]|rw|cc)")


class Described(NamedTuple):
    """What using the weights asks for, as in `Metadata`; `published` is their name in the table, or empty."""

    family: str
    normalization: str
    crop: str
    evaluation: str
    resize: str
    resolution: int
    class_names: tuple[str, ...]
    published: str


def describe_source(
    checkpoint: Checkpoint, source: Path, plan: "Plan", family: str | None, published: Published | None
) -> Described:
    """Returns what is known of weights.

    Args:
      checkpoint: that they are in.
      source: the path that was given.
      plan: what they are.
      family: the recipe that the user says they were trained by, if any.
      published: which of the published weights they are, where that is known.

    Raises:
      VariantError: the scaling of the input is not known; or the family has no such variant.
      CheckpointError: the file scales its input in a way that is not known, or is of another network.
    """
    about, variant = checkpoint.about, plan.variant
    told = about.normalization(str(checkpoint.source))
    published = published or _published_in_file(checkpoint, plan, told) or _published_in_name(source, plan)
    if published and published.variant == variant.name and family in (None, published.family):
        recipe, names = published.recipe, imagenet_class_names(plan.num_classes)
        resolution = published.resolution
        return Described(
            recipe.name, recipe.normalization, recipe.crop, "crop", "bicubic", resolution, names, published.name
        )
    if about.name and about.name.partition(".")[0] != f"tf_efficientnet_{variant.name}":
        raise CheckpointError(
            f"the config.json of {source} says that its weights are of timm's {about.name}, and they are of "
            f"{variant.name}: take both from one place, or remove it"
        )
    if plan.layout.name == "timm" and not about.name:
        _check_network(source, variant, family)
    original = _family_in_name(source) is not None and not about.name
    recipe = _family_with(told, variant, source) if told and family is None else choose_family(source, variant, family)
    return Described(
        family=recipe.name,
        normalization=told or recipe.normalization,
        crop=about.crop or recipe.crop,
        evaluation=about.evaluation or "crop",
        resize=about.resize or "bicubic",
        resolution=about.resolution or choose_resolution(source, variant),
        class_names=about.class_names or (imagenet_class_names(plan.num_classes) if original else ()),
        published="",
    )


def _check_network(source: Path, variant: Variant, family: str | None) -> None:
    """Raises CheckpointError where tensors under timm's names may be of a network with other padding and epsilon."""
    name = source.name.lower()
    if _OTHER_NETWORK.match(name):
        raise CheckpointError(
            f"{source} is called like a network of timm's with other padding and batch norm: only tf_efficientnet_* "
            "have the original's. If it is one of those, call the file so"
        )
    if variant.lite and "tf_" not in name and family is None:
        raise VariantError(
            f"{source} does not say whether it is of timm's tf_efficientnet_{variant.name} or of its "
            f"efficientnet_{variant.name}, another network: give --family lite if it is of the first"
        )


def _published_in_file(checkpoint: Checkpoint, plan: "Plan", told: str) -> Published | None:
    """The published weights that a file says it holds, where all else that it says fits.

    timm keeps the name of the weights that a training began with.
    """
    about = checkpoint.about
    found = next((row for row in table().values() if row.alias == about.name), None)
    if found is None or plan.num_classes not in (0, NUM_CLASSES) or about.class_names:
        return None
    lite = found.recipe.name == "lite"  # which timm scales, and sizes, otherwise
    fits = told in ("", found.recipe.normalization, "advprop" if lite else "")
    fits = fits and (lite or about.resolution in (0, found.resolution)) and about.crop in ("", found.recipe.crop)
    return found if fits and about.evaluation != "resize" else None


def _published_in_name(source: Path, plan: "Plan") -> Published | None:
    """The published weights whose file or folder is called so, where that is the name of one recipe's alone."""
    if plan.num_classes not in (0, NUM_CLASSES):
        return None
    source = source.absolute()
    names = {_stem(part.name) for part in (source, source.parent)}
    bare = f"efficientnet-{plan.variant.name}"  # several recipes', or a folder of anybody's; but for Lite's own archive
    if not (plan.variant.lite and source.name == f"{bare}.tar.gz"):
        names.discard(bare)
    found = [
        row
        for row in table().values()
        if row.variant == plan.variant.name and any(_stem(place.file) in names for place in row.sources)
    ]
    return found[0] if len(found) == 1 else None


def _stem(file: str) -> str:
    return file.lower().replace("_", "-").removesuffix(".tar.gz")


def _family_with(normalization: str, variant: Variant, source: Path) -> Family:
    """The recipe of a file that says how its input is scaled: the one in its name, else the first that scales so."""
    possible = [family for family in FAMILIES.values() if variant.name in family.variants]
    alike = [family for family in possible if family.normalization == normalization]
    told = _family_in_name(source)
    return next((family for family in alike if family.name == told), (alike or possible)[0])


def choose_family(source: Path, variant: Variant, family: str | None) -> Family:
    """Returns the family that is given, or that the source's name tells, or the only one that the variant has.

    Raises:
      VariantError: it cannot be told, or the family has no such variant.
    """
    possible = [choice for choice in FAMILIES.values() if variant.name in choice.variants]
    if family is not None:
        recipe = get_family(family)
        if recipe not in possible:
            choices = ", ".join(choice.name for choice in possible)
            raise VariantError(f"the family {family} has no {variant.name}: choose from {choices} for it")
        return recipe
    if len(possible) == 1:
        return possible[0]
    told = _family_in_name(source)
    for recipe in possible:
        if recipe.name == told:
            return recipe
    listed = "\n".join(f"  --family {choice.name:<14} {choice.description}" for choice in possible)
    raise VariantError(
        f"the name of {source} does not say by which recipe these weights of {variant.name} were trained, and the "
        f"scaling of the input depends on it: give one of\n{listed}"
    )


def _family_in_name(source: Path) -> str | None:
    source = source.expanduser().absolute()
    for place in (source, *list(source.parents)[:2]):
        text = place.name.lower()
        found = [family for family, pattern in _FAMILY_IN_FILE if pattern.search(text)]
        if place == source and found:
            return found[0]
        # `noisy_student_efficientnet-b1/model.ckpt`: an unpacked archive's folder has its name.
        if found and "efficientnet" in text:
            return found[0]
        if text in _FAMILY_IN_FOLDER:
            return _FAMILY_IN_FOLDER[text]
    return None


def choose_resolution(source: Path, variant: Variant) -> int:
    """Returns the side in pixels of the images that the weights were made for."""
    # Published twice: `…-l2` for 800 pixels and `…-l2_475` for 475.
    if variant.name == "l2" and any("475" in part for part in source.absolute().parts[-3:]):
        return 475
    return variant.resolution
