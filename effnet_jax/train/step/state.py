"""What a training step carries along: parameters, statistics, the optimizer's state and their moving averages."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from effnet_jax.train.step.freeze import FreezePlan

Variables = Mapping[str, Any]  # {"params": …, "batch_stats": …}


class TrainState(flax.struct.PyTreeNode):
    """The state of a run.

    Attributes:
      step: steps done, int32 []; it counts on through all phases.
      seed: of the run, int32 []: all randomness of its steps comes from it. One compiled step serves all seeds.
      params: all parameters, frozen ones too.
      batch_stats: all statistics of batch norm.
      opt_state: the optimizer's, of this phase's trained leaves only.
      ema: moving averages {"params", "batch_stats"} of the whole model, or None where there are none.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None

    @property
    def variables(self) -> Variables:
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    variables: Variables, optimizer: optax.GradientTransformation, *, ema: bool, seed: int = 0
) -> TrainState:
    """Makes the state that a run starts from. The averages start at the values themselves."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    averages = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # Copies: a state is donated to its step, and no buffer can be donated twice.
        ema=jax.tree.map(jnp.copy, averages) if ema else None,
    )


def enter_phase(state: TrainState, optimizer: optax.GradientTransformation, *, keep: bool = False) -> TrainState:
    """Carries a state over a phase's border: everything stays but the optimizer's state, which starts fresh.

    Args:
      state: at the end of the phase before.
      optimizer: of the new phase.
      keep: whether leaves that were trained before keep what belongs to them: their moments, and with Adam and LAMB
        their count, by which the bias of the moments is corrected. Each leaf has its own, so that a leaf which is
        trained from now on starts with a count of zero beside the others. What belongs to the phase starts fresh: the
        schedule's count, a plateau's scale.
    """
    fresh = optimizer.init(state.params)
    if keep:
        old = {_slot(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)}

        def carry(path: Any, leaf: jax.Array) -> jax.Array:
            slot = _slot(path)
            return old.get(slot, leaf) if slot else leaf

        fresh = jax.tree_util.tree_map_with_path(carry, fresh)
    return state.replace(opt_state=fresh)


def _slot(path: Any) -> tuple[str, ...]:
    """Names what an optimizer's state holds for one leaf: `("mu", "block7a", "project_conv", "kernel")`.

    The place in the chain is left out: clipping or SAM, which only one of two phases uses, moves it. What belongs to no
    leaf has the empty name.
    """
    leaf = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key != "trained")
    fields = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return (fields[-1], *leaf) if leaf else ()


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """The decay of moving averages after `step` steps, this one included: min(decay, (1 + t) / (10 + t)).

    Source: `tf.train.ExponentialMovingAverage` with `num_updates`, as the original runs it.
    """
    count = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + count) / (10.0 + count))


def update_ema(ema: Any, state: TrainState, plan: FreezePlan, decay: float) -> Any:
    """Moves the averages of all that has been trained so far; what never was keeps its own to the bit.

    Args:
      ema: the averages before.
      state: after the step: its parameters, statistics and step count are taken.
      plan: what is trained, and what was before.
      decay: of the averages, when they have warmed up.
    """
    rate = 1.0 - ema_decay(state.step, decay)
    averages, still = plan.split_averages(ema)
    values, _ = plan.split_averages(state.variables)
    return plan.merge(jax.tree.map(lambda average, value: average - rate * (average - value), averages, values), still)
