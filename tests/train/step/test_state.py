"""What an optimizer keeps over a phase's border."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effnet_jax.train.config import phase
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.train.step.optimizers import make_optimizer
from effnet_jax.train.step.state import TrainState, create_state, enter_phase, update_ema

RATE = 0.01
STEPS = 5

RULES = {
    "sgd": optax.sgd(RATE, momentum=0.9),
    "rmsprop": optax.rmsprop(RATE, 0.9, 1e-3, initial_scale=1.0, eps_in_sqrt=True, momentum=0.9),
    "adam": optax.adam(RATE),
    "adamw": optax.adamw(RATE, weight_decay=0.1),
    "lamb": optax.lamb(RATE, weight_decay=0.1),
    "lars": optax.lars(RATE, 0.1, momentum=0.9),
}


def gradient(step):
    """Gradients that differ from step to step, of two leaves: one trained from the start, one from the border on."""
    values = jnp.array([0.3, -2.0, 1.0]) * (1 + step)
    return {"top": {"conv": {"kernel": 0.1 * values}}, "classifier": {"kernel": values}}


def advance(state, optimizer, steps):
    for step in steps:
        updates, opt_state = optimizer.update(gradient(step), state.opt_state, state.params,
                                              grad_fn=lambda params, _, step=step: gradient(step))  # fmt: skip
        state = state.replace(opt_state=opt_state, params=optax.apply_updates(state.params, updates))
    return state


def held(opt_state, unit):
    """What the optimizer's state holds for the leaf of a unit, as (shape, bytes) in the state's order."""
    found = jax.tree_util.tree_leaves_with_path(opt_state)
    return [(leaf.shape, leaf.tobytes()) for path, leaf in found if f"['{unit}']" in jax.tree_util.keystr(path)]


# Clipping and SAM, which only the second phase has, move the moments to another place in the state.
@pytest.mark.parametrize(
    ("name", "second"),
    [*((name, {}) for name in RULES), ("adam", {"sam": 0.05}), ("sgd", {"clip_norm": 1e6})],
)
def test_kept_leaves_go_on_and_new_ones_start_fresh(name, second):
    decay = 0.0 if name in ("sgd", "rmsprop", "adam") else 0.1
    keys = {"steps": 10, "optimizer": name, "weight_decay": decay, "keep_optimizer": True}
    params = {"top": {"conv": {"kernel": jnp.array([3.0, 1.0, 2.0])}},
              "classifier": {"kernel": jnp.array([1.0, 2.0, -1.0])}}  # fmt: skip
    first = make_optimizer(phase(**keys), FreezePlan("lite0", ("classifier",)), lambda step: jnp.float32(RATE))
    plan = FreezePlan("lite0", ("top", "classifier"))
    then = make_optimizer(phase(**keys, **second), plan, lambda step: RATE * (step == 0) + 0.0 * (step > 0))
    state = advance(create_state({"params": params, "batch_stats": {}}, first, ema=False), first, range(STEPS))
    assert np.array_equal(state.params["top"]["conv"]["kernel"], params["top"]["conv"]["kernel"])

    entered = enter_phase(state, then, keep=True)
    assert held(entered.opt_state, "classifier") == held(state.opt_state, "classifier") != []
    assert held(entered.opt_state, "top") == held(then.init(params), "top") != []

    # The next step is that of optax's own rule: on the kept leaf as if there were no border, on the new one as a first.
    # That the new schedule's count is fresh shows as well: from its second step on it would be zero.
    after = advance(entered, then, [STEPS])
    for unit, steps in (("classifier", range(STEPS + 1)), ("top", [STEPS])):
        rule = RULES[name]
        leaf = jax.tree.leaves(params[unit])[0]
        own = rule.init(leaf)
        for step in steps:
            updates, own = rule.update(jax.tree.leaves(gradient(step)[unit])[0], own, leaf)
            leaf = optax.apply_updates(leaf, updates)
        np.testing.assert_allclose(jax.tree.leaves(after.params[unit])[0], leaf, rtol=1e-6)


def test_without_keep_everything_starts_fresh():
    plan = FreezePlan("lite0", ("classifier",))
    optimizer = make_optimizer(phase(steps=10, optimizer="adam"), plan, lambda step: RATE)
    params = {"top": {"conv": {"kernel": jnp.ones(3)}}, "classifier": {"kernel": jnp.ones(3)}}
    state = advance(create_state({"params": params, "batch_stats": {}}, optimizer, ema=False), optimizer, range(2))
    entered: TrainState = enter_phase(state, optimizer)
    for fresh, leaf in zip(jax.tree.leaves(optimizer.init(params)), jax.tree.leaves(entered.opt_state), strict=True):
        assert np.array_equal(fresh, leaf)


def test_an_average_goes_on_where_a_later_phase_freezes_its_leaf():
    """As the original's, which follow all variables: they reach what stopped moving, and equal what never moved."""
    first = FreezePlan("lite0", ("top", "classifier"))
    then = FreezePlan("lite0", ("classifier",), before=first)
    params = {
        unit: {"conv": {"kernel": jnp.full(3, value)}}
        for unit, value in (("stem", 1.0), ("top", 2.0), ("classifier", 3.0))
    }
    statistics = {"top": {"bn": {"mean": jnp.zeros(3)}}}
    averages = {"params": {**params, "top": {"conv": {"kernel": jnp.zeros(3)}}}, "batch_stats": statistics}
    state = TrainState(jnp.int32(10_000), jnp.int32(0), params, statistics, ())
    moved = averages
    for _ in range(100):
        moved = update_ema(moved, state, then, 0.9)
    assert np.allclose(moved["params"]["top"]["conv"]["kernel"], 2.0, atol=1e-3)
    assert np.array_equal(moved["params"]["stem"]["conv"]["kernel"], params["stem"]["conv"]["kernel"])
    alone = update_ema(averages, state, FreezePlan("lite0", ("classifier",)), 0.9)
    assert np.array_equal(alone["params"]["top"]["conv"]["kernel"], jnp.zeros(3))  # what no phase trained stays
