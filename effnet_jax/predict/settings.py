"""What an output was made with: kept beside it, so that nothing else is mixed into it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from effnet_jax import files
from effnet_jax.errors import ConfigError
from effnet_jax.weights.metadata import Metadata

_FREE = ("batch_size", "finished")  # may differ


def about_path(out: Path) -> Path:
    """Where it is kept for an output."""
    return out.with_name(f"{out.name}.about.json")


def weights_identity(metadata: Metadata) -> str:
    """A short hash of all values of some weights and of what turns them into answers."""
    said = [metadata.checksums, metadata.class_names, metadata.evaluation, metadata.crop, metadata.resize]
    text = json.dumps([*said, metadata.normalization, metadata.temperature], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def listing_identity(names: Iterable[str]) -> str:
    """A short hash of names in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def read_about(out: Path) -> dict[str, Any] | None:
    """Returns what an output was made with; None where nothing is known.

    Raises:
      ConfigError: it is damaged.
    """
    try:
        about = files.read_json(about_path(out))
    except ValueError as error:
        raise ConfigError(f"{error}: remove it and {out}, or give another name") from None
    return about if isinstance(about, dict) else None


def check_same(out: Path, asked: Mapping[str, Any]) -> None:
    """Raises ConfigError where an output that is there was made with other settings, or nobody knows with which."""
    known = read_about(out)
    cure = "give another name, or remove it"
    if known is None:
        raise ConfigError(f"{out} exists, and nothing says what it was made with: {cure}")
    keys = [key for key in {**known, **asked} if key not in _FREE and known.get(key) != asked.get(key)]
    if keys:
        listed = "; ".join(f"{key} was {known.get(key)!r} and is {asked.get(key)!r}" for key in keys)
        raise ConfigError(f"{out} was made with other settings ({listed}): {cure}, or give the settings as they were")


def keep_about(out: Path, about: Mapping[str, Any]) -> None:
    """Keeps what an output is made with."""
    files.write_json(about_path(out), dict(about))
