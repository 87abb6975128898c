"""What a file's name says about the weights in it: the recipe that they were trained by, and the resolution."""

import re
from pathlib import Path

from effnet_jax.errors import VariantError
from effnet_jax.model.variants import FAMILIES, Family, Variant, get_family

# What file names say about the family, the more telling first. Folder names count only where they are those of the
# published bucket: `imagenet` above a file may be the name of a data set.
_FAMILY_IN_FILE = (
    ("noisy_student", re.compile(r"noisy[-_]?student")),
    ("advprop", re.compile(r"advprop")),
    ("imagenet", re.compile(r"imagenet|rand[-_]?aug|auto[-_]?aug|ckptsaug")),
)
_FAMILY_IN_FOLDER = {
    "ckpts": "imagenet",
    "ckptsaug": "imagenet",
    "randaug": "imagenet",
    "advprop": "advprop",
    "noisystudent": "noisy_student",
}


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
