"""Learning-rate schedules and optimizers of a phase, all of them optax chains.

Sources: section "optimiser, schedule" of the original's `utils.py` (RMSProp, exponential decay, warm-up) in
tensorflow/tpu, models/official/efficientnet; You et al. 2017 (LARS); You et al. 2020 (LAMB); Foret et al. 2021 (SAM).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau, sam

from effnet_jax.train.step.freeze import FreezePlan

# The original's, for RMSProp.
RMSPROP_DECAY = 0.9
RMSPROP_EPSILON = 1e-3

# A published learning rate belongs to this many images a step (`scale_learning_rate`).
REFERENCE_BATCH = 256

Phase = Mapping[str, Any]


def phase_steps(phase: Phase, steps_per_epoch: float) -> int:
    """The number of steps of a phase, from its `steps` or its `epochs`; at least one."""
    return max(1, int(phase["steps"]) or round(phase["epochs"] * steps_per_epoch))


def make_schedule(phase: Phase, *, steps: int, steps_per_epoch: float, batch_size: int) -> optax.Schedule:
    """Makes the learning rate as a function of the step within a phase.

    `warmup` and `decay_every` are in epochs where the phase's length is, and in steps where it is given in steps. The
    decay counts from the phase's first step and not from the end of the warm-up, as in the original: an exponential
    schedule has come down when the warm-up ends.

    Of `"plateau"` this is the warm-up and the constant after it: its scale follows the validation loss and lies in the
    optimizer's state (`observe`, `plateau_scale`).

    Args:
      phase: with `learning_rate`, `schedule`, `warmup`, `decay_rate`, `decay_every`, `scale_learning_rate`.
      steps: length of the phase.
      steps_per_epoch: images of an epoch over `batch_size`; need not be whole.
      batch_size: of the global batch.

    Returns:
      A function from the step (0 is the first) to the learning rate, float32.
    """
    unit = 1.0 if phase["steps"] else steps_per_epoch
    peak = phase["learning_rate"] * (batch_size / REFERENCE_BATCH if phase["scale_learning_rate"] else 1.0)
    warmup = int(phase["warmup"] * unit)
    decay = {
        "constant": lambda: optax.constant_schedule(peak),
        "plateau": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps),
        "exponential": lambda: _staircase(peak, phase["decay_rate"], phase["decay_every"] * unit),
    }[phase["schedule"]]()

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step)
        rate = jnp.asarray(decay(step), jnp.float32)
        return jnp.where(step < warmup, peak * step.astype(jnp.float32) / max(warmup, 1), rate)

    return schedule


def _staircase(peak: float, decay_rate: float, every: float) -> optax.Schedule:
    # optax.exponential_decay wants a whole number of steps between two stairs; the original's is a fraction.
    return lambda step: peak * jnp.float32(decay_rate) ** jnp.floor(step.astype(jnp.float32) / jnp.float32(every))


def make_optimizer(phase: Phase, plan: FreezePlan, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes the optimizer of a phase, over the whole tree of parameters.

    Frozen leaves are masked out by the plan's labels: they get no update and hold no state, and neither clipping nor
    weight decay sees them. The order is the original's: clip the gradient's norm, add the decay to the gradient
    (adamw, lars and lamb apply it to the weights), then the rule, then the factors of the units, then the scale of a
    plateau schedule.

    With `sam` all this works on the gradient at a point uphill of the weights, at the distance `sam` along their own
    gradient. Then `update` needs `grad_fn`, a function from (params, 0) to gradients of the whole tree, those of frozen
    leaves zero, so that they are not moved; a step costs two gradients.

    Args:
      phase: with `optimizer`, `momentum`, `nesterov`, `weight_decay`, `decay_biases`, `clip_norm`, `layer_decay`,
        `factors`, `schedule`, `plateau_factor`, `plateau_patience`, `sam`.
      plan: what is trained.
      schedule: from `make_schedule`.
    """
    factors = unit_factors(plan, phase["layer_decay"], phase["factors"])
    parts = []
    if phase["clip_norm"]:
        parts.append(optax.clip_by_global_norm(phase["clip_norm"]))
    parts.append(_rule(phase, schedule, lambda params: plan.decay_mask(params, biases=phase["decay_biases"])))
    if any(factor != 1.0 for factor in factors.values()):
        parts.append(_scale_units(factors))
    if phase["schedule"] == "plateau":
        parts.append(_scale_by_plateau(phase))
    optimizer = optax.partition({"trained": optax.chain(*parts), "frozen": optax.set_to_zero()}, plan.labels)
    if not phase["sam"]:
        return optimizer
    # Epsilon: a gradient of exactly zero, as on images known by heart, moves nothing and is no division by zero.
    uphill = optax.normalize_by_update_norm(scale_factor=-phase["sam"], eps=1e-12)
    return sam(optimizer, uphill, sync_period=2, opaque_mode=True)


def _rule(phase: Phase, rate: optax.Schedule, mask: Callable[[Any], Any]) -> optax.GradientTransformation:
    name, momentum, decay = phase["optimizer"], phase["momentum"], phase["weight_decay"]
    if name == "adamw":
        return optax.chain(
            _leaf_by_leaf(optax.scale_by_adam(b1=momentum)),
            optax.add_decayed_weights(decay, mask),
            optax.scale_by_learning_rate(rate),
        )
    if name == "lamb":
        return optax.chain(
            _leaf_by_leaf(optax.scale_by_adam(b1=momentum, eps=1e-6)),
            optax.add_decayed_weights(decay, mask),
            optax.scale_by_trust_ratio(),
            optax.scale_by_learning_rate(rate),
        )
    if name == "lars":  # leaves that do not decay are not rescaled either
        return optax.lars(rate, decay, weight_decay_mask=mask, trust_ratio_mask=mask, momentum=momentum)
    rules = {
        "sgd": lambda: optax.sgd(rate, momentum=momentum or None, nesterov=phase["nesterov"]),
        "adam": lambda: optax.chain(
            _leaf_by_leaf(optax.scale_by_adam(b1=momentum)), optax.scale_by_learning_rate(rate)
        ),
        # Epsilon inside the square root, the mean square from 1, and the rate inside the momentum: as the original.
        "rmsprop": lambda: optax.rmsprop(
            rate, RMSPROP_DECAY, RMSPROP_EPSILON, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum or None
        ),
    }
    return optax.chain(optax.add_decayed_weights(decay, mask), rules[name]()) if decay else rules[name]()


def _leaf_by_leaf(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Gives each leaf a state of its own, so that Adam corrects the bias of its moments by the leaf's own age.

    With one count for all, a leaf that is trained from the second phase on could not start beside one that keeps its
    moments (`state.enter_phase`): the count would be wrong for one of them.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(rule.init, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        pairs = jax.tree.map(rule.update, updates, state)  # (update, state) at each leaf
        return tuple(jax.tree.map(lambda _, pair, part=part: pair[part], updates, pairs) for part in (0, 1))

    return optax.GradientTransformation(init, update)


def _plateau_rule(phase: Phase) -> optax.GradientTransformationExtraArgs:
    return reduce_on_plateau(factor=phase["plateau_factor"], patience=phase["plateau_patience"])


def _scale_by_plateau(phase: Phase) -> optax.GradientTransformation:
    """Multiplies updates by the plateau's scale. A training step never changes it: `observe` does, between steps."""

    def update(updates: Any, state: ReduceLROnPlateauState, params: Any = None) -> tuple[Any, ReduceLROnPlateauState]:
        del params
        return jax.tree.map(lambda leaf: state.scale * leaf, updates), state

    return optax.GradientTransformation(_plateau_rule(phase).init, update)


def observe(phase: Phase, opt_state: Any, validation_loss: float) -> Any:
    """Shows a plateau schedule the validation loss of an evaluation.

    The scale is multiplied by `plateau_factor` after `plateau_patience` evaluations in a row whose loss was not lower
    than the lowest before them, by a ten-thousandth of it.

    Args:
      phase: with `plateau_factor`, `plateau_patience`.
      opt_state: of the optimizer of this phase.
      validation_loss: of the evaluation.

    Returns:
      `opt_state` with the plateau's part advanced, its arrays placed as they were; all else is the same arrays.
    """
    rule = _plateau_rule(phase)

    def advance(node: Any) -> Any:
        if not _is_plateau(node):
            return node
        # On the host, where every process has the same few numbers.
        _, new = rule.update({}, jax.tree.map(np.asarray, node), value=np.float32(validation_loss))
        return jax.tree.map(lambda value, old: jax.device_put(np.asarray(value), old.sharding), new, node)

    return jax.tree.map(advance, opt_state, is_leaf=_is_plateau)


def plateau_scale(opt_state: Any) -> float:
    """Returns what a plateau schedule multiplies the learning rate by; 1 for every other schedule."""
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_plateau) if _is_plateau(node)]
    return float(states[0].scale) if states else 1.0


def _is_plateau(node: Any) -> bool:
    return isinstance(node, ReduceLROnPlateauState)


def unit_factors(plan: FreezePlan, layer_decay: float = 1.0, factors: Mapping[str, float] | None = None):
    """Returns the learning-rate factor of each trained unit.

    Args:
      plan: what is trained.
      layer_decay: factor between a unit and the next one towards the input; the classifier has 1.
      factors: pattern of units → a further factor, such as `{"classifier": 10.0}`.
    """
    depth = len(plan.units) - 1
    result = {unit: layer_decay ** (depth - plan.units.index(unit)) for unit in plan.trained_units}
    for pattern, factor in (factors or {}).items():
        for unit in FreezePlan(plan.variant, (pattern,)).trained_units:
            if unit in result:
                result[unit] *= factor
    return result


def _scale_units(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(lambda path, update: update * factors[path[0].key], updates)

    return optax.stateless(scale)
