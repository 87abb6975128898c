"""What a trunk cache holds, where it is cut, and the hash of all that its numbers depend on."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax import hosts
from effnet_jax.data.sources.base import Source, fingerprint
from effnet_jax.errors import ConfigError
from effnet_jax.summary import summarise
from effnet_jax.train.step.freeze import FreezePlan


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """What the cache of a phase holds.

    Attributes:
      units: the frozen units that are not run again, from the stem to the cut.
      first: the unit that a step starts from.
      shape: of one example's output; pooled where the cut is `top`.
      dtype: that outputs are kept in.
      views: of each training image.
      images: number of images by split: `train`, and `validation` where there is one.
      place: `"memory"` or `"disk"`.
      gib: the budget.
    """

    units: tuple[str, ...]
    first: str
    shape: tuple[int, ...]
    dtype: str
    views: int
    images: Mapping[str, int]
    place: str
    gib: float

    @property
    def cut(self) -> str:
        """The last unit that is not run again."""
        return self.units[-1]

    @property
    def rows(self) -> dict[str, int]:
        """Number of outputs by split."""
        return {split: count * (self.views if split == "train" else 1) for split, count in self.images.items()}

    @property
    def bytes(self) -> int:
        return sum(self.rows.values()) * math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        views = f" × {self.views} views" if self.views > 1 else ""
        rows = " + ".join(f"{count:,} {split}{views * (split == 'train')}" for split, count in self.images.items())
        shape = "×".join(map(str, self.shape))
        return f"outputs of {self.cut}, {shape} in {self.dtype}, of {rows} images: {self.bytes / 2**30:.2f} GiB"


def plan_cache(
    phase: Mapping[str, Any], plan: FreezePlan, views: int, *, resolution: int, images: Mapping[str, int], where: str
) -> CachePlan | None:
    """Chooses where a phase's cache is cut: as deep as the frozen prefix goes and the budget allows.

    Args:
      phase: with `cache`, `cache_gib`, `cache_dtype`.
      plan: what is trained.
      views: that the phase shows of each training image.
      resolution: of the phase.
      images: number of images by split.
      where: what an error calls the phase.

    Returns:
      The plan; None where the phase has no cache.

    Raises:
      ConfigError: the budget is too small for any cut.
    """
    if not phase["cache"]:
        return None
    assert plan.cut is not None  # the config's check has seen to it
    shapes = {unit.name: unit.shape for unit in summarise(plan.variant, resolution)}
    shapes["top"] = shapes["top"][-1:]
    options = [
        CachePlan(
            units=plan.units[:first],
            first=plan.units[first],
            shape=shapes[plan.units[first - 1]],
            dtype=phase["cache_dtype"],
            views=views,
            images={split: images[split] for split in ("train", "validation") if split in images},
            place=phase["cache"],
            gib=phase["cache_gib"],
        )
        for first in range(plan.units.index(plan.cut) + 1, 0, -1)
    ]
    fitting = [option for option in options if option.bytes <= option.gib * 2**30]
    if not fitting:
        least = min(options, key=lambda option: option.bytes)
        raise ConfigError(
            f"{where}.cache_gib={least.gib:g} is too small for any cut; the smallest cache: {least}. "
            "Give cache_gib more, take fewer views or cache_dtype='float16', or set cache=''"
        )
    return fitting[0]


def cache_key(plan: CachePlan, about: Mapping[str, Any], trunk: str, sources: Mapping[str, Source]) -> str:
    """Returns the hash of all that a cache's numbers depend on.

    Args:
      plan: what is kept.
      about: settings as JSON has them: augmentation, seed, resolution and so on.
      trunk: from `trunk_hash`.
      sources: by split.
    """
    kept = {name: value for name, value in dataclasses.asdict(plan).items() if name not in ("gib", "place")}
    images = [fingerprint(sources[split]) for split in plan.images]
    text = json.dumps({"about": about, "plan": kept, "trunk": trunk, "images": images}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def trunk_variables(plan: CachePlan, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters and statistics that the cached outputs come from."""
    return {kind: {unit: tree[unit] for unit in plan.units if unit in tree} for kind, tree in variables.items()}


def trunk_hash(plan: CachePlan, variables: Mapping[str, Any]) -> str:
    """Returns a hash of `trunk_variables`."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trunk_variables(plan, variables)):
        array = np.ascontiguousarray(hosts.whole_array(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
