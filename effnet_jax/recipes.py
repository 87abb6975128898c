"""Recipes by name: those of `configs/`, which an installed package has in it."""

import os
from pathlib import Path

from effnet_jax.errors import ConfigError, nearest

_HERE = Path(__file__).parent
# Where a wheel has them, and where they are written.
FOLDERS = (_HERE / "configs", _HERE.parent / "configs")


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    found = next((folder for folder in FOLDERS if folder.is_dir()), None)
    return sorted(path.stem for path in found.glob("*.py")) if found else []


def find_recipe(text: str) -> str:
    """Returns `FILE[:ARGUMENT]` of a recipe.

    Args:
      text: `FILE[:ARGUMENT]`; or `NAME[:ARGUMENT]` of a recipe that comes with the package, `configs/NAME.py` too where
        there is no such file.

    Raises:
      ConfigError: there is no such file or recipe; with the nearest names.
    """
    path, colon, argument = text.partition(":")
    if os.path.isfile(path):
        return text
    folder, file = os.path.split(path)
    name = file.removesuffix(".py")
    if folder in ("", "configs") and name in recipe_names():
        place = next(folder / f"{name}.py" for folder in FOLDERS if folder.is_dir())
        return f"{place}{colon}{argument}"
    there = [os.path.join(folder, other) for other in os.listdir(folder)] if folder and os.path.isdir(folder) else []
    choices = [other for other in there if other.endswith(".py")] or recipe_names()
    raise ConfigError(f"--config={text}: there is no such file: {nearest(path, choices)}")
