"""Learning-rate schedules and optimizers of a phase, all of them optax chains.

Sources: section "optimiser, schedule" of the original's `utils.py` (RMSProp, exponential decay, warm-up) in
tensorflow/tpu, models/official/efficientnet; You et al. 2017 (LARS); You et al. 2020 (LAMB).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from effnet_jax.train.freeze import FreezePlan

OPTIMIZERS = ("sgd", "rmsprop", "adam", "adamw", "lars", "lamb")
SCHEDULES = ("constant", "cosine", "exponential")

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
    (adamw, lars and lamb apply it to the weights), then the rule, then the factors of the units.

    Args:
      phase: with `optimizer`, `momentum`, `nesterov`, `weight_decay`, `decay_biases`, `clip_norm`, `layer_decay`,
        `factors`.
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
    return optax.partition({"trained": optax.chain(*parts), "frozen": optax.set_to_zero()}, plan.labels)


def _rule(phase: Phase, rate: optax.Schedule, mask: Callable[[Any], Any]) -> optax.GradientTransformation:
    name, momentum, decay = phase["optimizer"], phase["momentum"], phase["weight_decay"]
    if name == "adamw":
        return optax.adamw(rate, b1=momentum, weight_decay=decay, mask=mask)
    if name == "lamb":
        return optax.lamb(rate, b1=momentum, weight_decay=decay, mask=mask)
    if name == "lars":  # leaves that do not decay are not rescaled either
        return optax.lars(rate, decay, weight_decay_mask=mask, trust_ratio_mask=mask, momentum=momentum)
    rules = {
        "sgd": lambda: optax.sgd(rate, momentum=momentum or None, nesterov=phase["nesterov"]),
        "adam": lambda: optax.adam(rate, b1=momentum),
        # Epsilon inside the square root, the mean square from 1, and the rate inside the momentum: as the original.
        "rmsprop": lambda: optax.rmsprop(
            rate, RMSPROP_DECAY, RMSPROP_EPSILON, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum or None
        ),
    }
    return optax.chain(optax.add_decayed_weights(decay, mask), rules[name]()) if decay else rules[name]()


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
