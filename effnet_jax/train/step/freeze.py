"""The freeze plan: what a phase trains, and everything that follows from it.

This is the only place that knows what is frozen. A unit (`stem`, a block, `top`, `classifier`) is frozen whole or not
at all: a block's shortcut runs from its first layer to its last, so a part of a block cannot be held still while the
rest learns around it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from effnet_jax.choices import BATCH_NORM_MODES
from effnet_jax.errors import ConfigError, PatternError, nearest
from effnet_jax.model.variants import get_variant

Params = Mapping[str, Any]  # {unit: {layer: {leaf: array}}}


@dataclasses.dataclass(frozen=True)
class FreezePlan:
    """What is trained in a phase.

    Attributes:
      variant: name of the architecture.
      trained: patterns of the trained units: a unit (`"block6a"`), a stage (`"block6"`), `"block6:"` (from there to
        the output), or `"all"`.
      batch_norm: in trained units, `"frozen"` keeps statistics, scale and bias as they are (what transferred weights
        need), `"train"` normalises with the batch, updates the statistics and trains scale and bias (from scratch).
        In frozen units batch norm is always still.
      before: the plan of the phase before, if any: what earlier phases moved, the moving averages still follow.

    Raises:
      PatternError: a pattern names no unit, or a part of one.
      ConfigError: an unknown batch-norm mode.
    """

    variant: str
    trained: tuple[str, ...]
    batch_norm: str = "frozen"
    before: "FreezePlan | None" = None

    def __post_init__(self) -> None:
        patterns = (self.trained,) if isinstance(self.trained, str) else tuple(self.trained)
        object.__setattr__(self, "trained", patterns)
        if self.batch_norm not in BATCH_NORM_MODES:
            near = nearest(self.batch_norm, BATCH_NORM_MODES)
            raise ConfigError(f"batch_norm={self.batch_norm!r} is not a mode: {near}")
        if not patterns:
            raise PatternError(
                f"nothing to train: name at least one unit or stage of {self.variant}, such as 'classifier' or 'all'"
            )
        _ = self.trained_units  # resolves every pattern now, so that a mistake shows before anything is loaded

    @property
    def units(self) -> tuple[str, ...]:
        """All units of the variant, from the input to the output."""
        return get_variant(self.variant).units

    @functools.cached_property
    def trained_units(self) -> tuple[str, ...]:
        """The trained units, from the input to the output."""
        return units_of(self.trained, self.variant)

    @property
    def trains_classifier(self) -> bool:
        """Whether the classifier moves: a fresh one must, before anything behind it can learn."""
        return "classifier" in self.trained_units

    @property
    def trains_trunk(self) -> bool:
        """Whether any unit but the classifier moves."""
        return self.trained_units != ("classifier",)

    @property
    def first_trained(self) -> str:
        """The trained unit that is nearest to the input."""
        return self.trained_units[0]

    @property
    def cut(self) -> str | None:
        """The last unit of the frozen prefix, whose output this phase never changes; None where the stem is trained."""
        index = self.units.index(self.first_trained)
        return self.units[index - 1] if index else None

    @property
    def stochastic_units(self) -> tuple[str, ...]:
        """Where stochastic depth and dropout act: the model's `train` argument."""
        return self.trained_units

    @property
    def batch_norm_units(self) -> tuple[str, ...]:
        """Where batch norm uses the batch and updates its statistics: the model's `update_batch_norm` argument."""
        return self.trained_units if self.batch_norm == "train" else ()

    def is_trained(self, path: Sequence[str]) -> bool:
        """Whether the parameter at `path`, such as `("block2a", "expand_bn", "scale")`, is trained."""
        unit, layer = path[0], path[1]
        return unit in self.trained_units and (unit in self.batch_norm_units or not _is_batch_norm(layer))

    def labels(self, params: Params) -> dict[str, Any]:
        """Returns a tree like `params` with `"trained"` or `"frozen"` at each leaf, as `optax.partition` takes it."""
        flat = _flat(params)
        return _nested({path: "trained" if self.is_trained(path) else "frozen" for path in flat})

    def split(self, params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
        """Splits parameters into (trained, frozen): two trees that hold only their own leaves."""
        flat = _flat(params)
        trained = {path: leaf for path, leaf in flat.items() if self.is_trained(path)}
        frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
        return _nested(trained), _nested(frozen)

    def merge(self, trained: Params, frozen: Params) -> dict[str, Any]:
        """Puts the two trees of `split` together again."""
        return _nested({**_flat(frozen), **_flat(trained)})

    def split_statistics(self, batch_stats: Params) -> tuple[dict[str, Any], dict[str, Any]]:
        """Splits batch statistics into (those that this phase updates, the still ones)."""
        moving = {unit: layers for unit, layers in batch_stats.items() if unit in self.batch_norm_units}
        return moving, {unit: layers for unit, layers in batch_stats.items() if unit not in moving}

    def is_averaged(self, path: Sequence[str]) -> bool:
        """Whether a moving average may differ from its value, of which `path` begins with the collection.

        An average of what an earlier phase trained goes on to its value, as in the original; all others equal it.
        """
        collection, *inside = path
        moved = self.is_trained(inside) if collection == "params" else inside[0] in self.batch_norm_units
        return moved or (self.before is not None and self.before.is_averaged(path))

    def split_averages(self, variables: Params) -> tuple[dict[str, Any], dict[str, Any]]:
        """Splits `{"params", "batch_stats"}` into (what the moving averages follow, what equals its average)."""
        flat = _flat(variables)
        moving = {path: leaf for path, leaf in flat.items() if self.is_averaged(path)}
        return _nested(moving), _nested({path: leaf for path, leaf in flat.items() if path not in moving})

    def decay_mask(self, params: Params, biases: bool = True) -> dict[str, Any]:
        """Returns a tree like `params` (or a part of them): True where weight decay applies.

        The original decays everything but batch norm's scale and bias; the other biases are a choice.

        Args:
          params: parameters, whole or only the trained ones.
          biases: whether biases of the classifier and of squeeze-and-excite decay, as in the original.
        """
        flat = _flat(params)
        return _nested({path: not _is_batch_norm(path[1]) and (biases or path[-1] != "bias") for path in flat})

    def table(self, params: Params) -> list[dict[str, Any]]:
        """Returns one row for each unit: `unit`, `parameters`, `trained` (parameters that move), `batch_norm`."""
        rows = []
        for unit in self.units:
            flat = _flat({unit: params[unit]}) if unit in params else {}
            has_batch_norm = any(_is_batch_norm(path[1]) for path in flat)
            mode = "train" if unit in self.batch_norm_units else "frozen"
            rows.append(
                {
                    "unit": unit,
                    "parameters": sum(leaf.size for leaf in flat.values()),
                    "trained": sum(leaf.size for path, leaf in flat.items() if self.is_trained(path)),
                    "batch_norm": mode if has_batch_norm else "",
                }
            )
        return rows


def units_of(patterns: bool | Sequence[str], variant: str) -> tuple[str, ...]:
    """Returns the units that some patterns name, from the input to the output; True: all, False: none.

    Raises:
      PatternError: a pattern names no unit, or a part of one.
    """
    if isinstance(patterns, bool):
        return get_variant(variant).units if patterns else ()
    chosen = set().union(*(_resolve(pattern, variant) for pattern in patterns))
    return tuple(unit for unit in get_variant(variant).units if unit in chosen)


def _flat(tree: Params) -> dict[tuple[str, ...], Any]:
    from flax import traverse_util  # not above: patterns are checked before JAX is imported

    return traverse_util.flatten_dict(dict(tree))


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    from flax import traverse_util

    return traverse_util.unflatten_dict(dict(flat))


def _is_batch_norm(layer: str) -> bool:
    return layer == "bn" or layer.endswith("_bn")


def _resolve(pattern: str, variant: str) -> tuple[str, ...]:
    """Returns the units that a pattern names."""
    units = get_variant(variant).units
    if pattern == "all":
        return units
    open_ended = isinstance(pattern, str) and pattern.endswith(":")
    name = pattern.removesuffix(":") if open_ended else pattern
    matched = tuple(unit for unit in units if name in (unit, _stage(unit)))
    if not matched:
        raise PatternError(_pattern_message(pattern, variant))
    return units[units.index(matched[0]) :] if open_ended else matched


def _stage(unit: str) -> str:
    """The stage of a block, `block2` for `block2a`; another unit is its own."""
    return unit[:-1] if unit.startswith("block") else unit


def _pattern_message(pattern: str, variant: str) -> str:
    units = get_variant(variant).units
    stages = sorted({_stage(unit) for unit in units})
    owner = next((unit for unit in units if str(pattern).startswith((f"{unit}/", f"{unit}."))), None)
    if owner:
        return (
            f"the pattern {pattern!r} would split the unit {owner!r} of {variant}, and a unit is frozen whole or not "
            f"at all (a block's shortcut runs from its first layer to its last): write {owner!r}"
        )
    return (
        f"the pattern {pattern!r} matches no unit of {variant}: "
        f"{nearest(str(pattern).removesuffix(':'), dict.fromkeys([*units, *stages, 'all']))} "
        f"(units are stem, block1a … {units[-3]}, top, classifier; 'block6' is a stage, 'block6:' means from there on)"
    )
