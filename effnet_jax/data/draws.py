"""Which operations of AutoAugment, RandAugment or TrivialAugment an example gets, drawn from its own key."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from effnet_jax.data.operations import KIND_OF, Drawn, prepare
from effnet_jax.data.policies import (
    IDENTITY,
    OPERATIONS,
    SIGNED,
    TRIVIAL_BINS,
    TRIVIAL_OPERATIONS,
    Scale,
    Step,
    level_argument,
    trivial_arguments,
)

Table = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw_randaugment(key: Array, size: tuple[int, int], layers: int, magnitude: int, scale: Scale) -> list[Drawn]:
    """Draws RandAugment's operations for one example: one of 16 for each layer, always applied.

    Args:
      key: the example's random key.
      size: height and width of the images.
      layers: how many operations follow each other.
      magnitude: the level of all of them.
      scale: what the largest level means.

    Returns:
      One `Drawn` for each layer.
    """
    table = _table([(name, level_argument(name, magnitude, scale)) for name in OPERATIONS], size)
    drawn = []
    for layer in range(layers):
        which_key, detail_key = jax.random.split(jax.random.fold_in(key, layer))
        which = jax.random.randint(which_key, (), 0, len(OPERATIONS))
        drawn.append(_with_details(detail_key, table, which))
    return drawn


def draw_trivialaugment(key: Array, size: tuple[int, int]) -> list[Drawn]:
    """Draws TrivialAugment's operation for one example: one of its wide space, with a strength of its own.

    Args:
      key: the example's random key.
      size: height and width of the images.

    Returns:
      One `Drawn`.
    """
    rows = [(name, trivial_arguments(name, bin_)) for name in TRIVIAL_OPERATIONS for bin_ in range(TRIVIAL_BINS)]
    which_key, detail_key = jax.random.split(key)
    which = jax.random.randint(which_key, (), 0, len(rows))
    return [_with_details(detail_key, _table_of_pairs(rows, size), which)]


def draw_policy(key: Array, size: tuple[int, int], policy: Sequence[Sequence[Step]], scale: Scale) -> list[Drawn]:
    """Draws AutoAugment's operations for one example: one sub-policy, each step with its own probability.

    Args:
      key: the example's random key.
      size: height and width of the images.
      policy: of `policies.POLICIES`.
      scale: what the largest level means.

    Returns:
      One `Drawn` for each step of a sub-policy.
    """
    which_key, *step_keys = jax.random.split(key, 1 + len(policy[0]))
    which = jax.random.randint(which_key, (), 0, len(policy))
    drawn = []
    for position, step_key in enumerate(step_keys):
        steps = [sub_policy[position] for sub_policy in policy]
        table = _table([(step.operation, level_argument(step.operation, step.level, scale)) for step in steps], size)
        chance_key, detail_key = jax.random.split(step_key)
        chance = jnp.asarray([step.probability for step in steps], jnp.float32)[which]
        applied = jnp.floor(jax.random.uniform(chance_key) + chance) > 0
        one = _with_details(detail_key, table, which)
        drawn.append(one._replace(kind=jnp.where(applied, one.kind, KIND_OF[IDENTITY])))
    return drawn


def _table(rows: Sequence[tuple[str, float]], size: tuple[int, int]) -> Table:
    """What `prepare` gives for each row, with the negative and the positive argument: arrays [rows, 2, ...]."""
    return _table_of_pairs([(name, (-value if name in SIGNED else value, value)) for name, value in rows], size)


def _table_of_pairs(rows: Sequence[tuple[str, tuple[float, float]]], size: tuple[int, int]) -> Table:
    """Likewise, of both arguments."""
    prepared = [[prepare(name, value, *size) for value in values] for name, values in rows]
    kinds, values, matrices = (np.array([[pair[i] for pair in row] for row in prepared]) for i in range(3))
    return kinds.astype(np.int32), values.astype(np.float32), matrices.astype(np.float32)


def _with_details(key: Array, table: Table, which: Array) -> Drawn:
    """Draws an operation's sign and centre."""
    sign_key, centre_key = jax.random.split(key)
    positive = jnp.floor(jax.random.uniform(sign_key) + 0.5).astype(jnp.int32)
    kind, argument, matrix = (jnp.asarray(column)[which, positive] for column in table)
    return Drawn(kind, argument, matrix, jax.random.uniform(centre_key, (2,)))
