"""`data.json`: which data and weights a run began with, so that an attempt with others is told what differs."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from effnet_jax import files
from effnet_jax.data.sources.base import ArraySource, Source, expand
from effnet_jax.errors import DataError, RunError
from effnet_jax.weights.metadata import Metadata

DATA = "data.json"

_LISTED = 10_000  # names of images of a split, so that a difference can name them
_SHOWN = 3
_SAMPLES = 16  # images that are hashed
_SHORT = 16  # hex digits of a hash


def describe_run(sources: Mapping[str, Source], root: str, weights: Metadata | None) -> dict[str, Any]:
    """Returns what identifies the data and weights of a run, as JSON has it.

    Args:
      sources: by split.
      root: `data.name`; names of images below it are taken relative to it, so that a set may be moved.
      weights: metadata of the weights that the run starts from.
    """
    return {
        "class_names": list(sources["train"].class_names),
        "splits": {split: _describe(source, root) for split, source in sources.items()},
        "weights": hash_of(weights.checksums) if weights else None,
    }


def _describe(source: Source, root: str) -> dict[str, Any]:
    root = os.path.join(expand(root), "")
    names = [source.example_id(index).removeprefix(root) for index in range(len(source))]
    result: dict[str, Any] = {"images": len(source), "names": hash_of(names), "sample": _sample(source)}
    if source.labels is not None:
        result["labels"] = hashlib.sha256(np.asarray(source.labels, "<i4").tobytes()).hexdigest()[:_SHORT]
    if len(names) <= _LISTED:
        result["listed"] = names
    return result


def _sample(source: Source) -> str:
    """A hash of some images: arrays and prepared sets have no names that tell their images apart."""
    digest = hashlib.sha256()
    for index in np.linspace(0, len(source) - 1, min(_SAMPLES, len(source))).astype(int):
        if isinstance(source, ArraySource):
            digest.update(source.images[index].tobytes())
            continue
        try:
            digest.update(source.encoded(int(index))[0])
        except DataError as error:  # a bad image is what it is, and may be skipped
            digest.update(str(error).encode())
    return digest.hexdigest()[:_SHORT]


def hash_of(value: Any) -> str:
    """Returns a short hash of what JSON can hold."""
    return hashlib.sha256(files.to_json_text(value).encode(errors="surrogateescape")).hexdigest()[:_SHORT]


def without_names(described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a description without the lists of names, for comparing hosts: the hashes tell as much."""
    splits = {
        split: {key: value for key, value in about.items() if key != "listed"}
        for split, about in described["splits"].items()
    }
    return {**described, "splits": splits}


def read_identity(workdir: epath.Path) -> dict[str, Any] | None:
    """Returns what a run dir says about its data and weights; None where it is of a version that wrote nothing.

    Raises:
      RunError: it is damaged.
    """
    try:
        return files.read_json(workdir / DATA)
    except ValueError as error:
        raise RunError(
            f"{error}: where data and weights are those that the run began with, delete the file and start again"
        ) from None


def identity_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns one line for each thing in which data and weights differ from those that a run began with.

    Args:
      old: from `describe_run` at the run's first start.
      new: likewise, now.
    """
    lines = []
    if old["class_names"] != new["class_names"]:
        lines.append(f"classes: {_named_changes(old['class_names'], new['class_names'])}")
    for split in [*old["splits"], *(split for split in new["splits"] if split not in old["splits"])]:
        before, after = old["splits"].get(split), new["splits"].get(split)
        if before is None or after is None:
            lines.append(f"{split}: {'no such split' if after is None else 'a split that was not there'} now")
        elif line := _split_changes(before, after):
            lines.append(f"{split}: {line}")
    if old.get("weights") != new["weights"]:
        lines.append("weights: other values")
    return lines


def _split_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if before["images"] != after["images"] or before["names"] != after["names"]:
        counts = f"{before['images']:,} images before, {after['images']:,} now"
        if "listed" in before and "listed" in after:
            return f"{counts}: {_named_changes(before['listed'], after['listed'])}"
        return counts if before["images"] != after["images"] else f"{counts}, with other names"
    for key, what in (("labels", "other labels"), ("sample", "other images under the same names")):
        if before.get(key) != after.get(key):
            return what
    return ""


def _named_changes(before: Sequence[str], after: Sequence[str]) -> str:
    known, now = set(before), set(after)
    parts = []
    for what, names in (
        ("new", [name for name in after if name not in known]),
        ("gone", [name for name in before if name not in now]),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"{what}: {', '.join(names[:_SHOWN])}{more}")
    if parts:
        return "; ".join(parts)
    return "the same, in another order"
