import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax.train.config import phase
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.train.step.optimizers import (
    make_optimizer,
    make_schedule,
    observe,
    phase_steps,
    plateau_scale,
    unit_factors,
)
from effnet_jax.train.step.partition import make_partition

IMAGENET = 1281167


@pytest.mark.parametrize("batch_size", [256, 2048, 4096])
def test_exponential_schedule_equals_the_original(golden, batch_size):
    arrays = np.load(golden / "train_golden.npz")
    keys = phase(
        epochs=350, learning_rate=0.016, scale_learning_rate=True, schedule="exponential", warmup=5, decay_every=2.4
    )
    per_epoch = IMAGENET / batch_size
    schedule = make_schedule(keys, steps=phase_steps(keys, per_epoch), steps_per_epoch=per_epoch, batch_size=batch_size)
    rates = jax.vmap(schedule)(jnp.asarray(arrays[f"lr/exponential/{batch_size}/steps"].astype(np.int32)))
    np.testing.assert_allclose(rates, arrays[f"lr/exponential/{batch_size}/values"], rtol=5e-7)


def test_cosine_schedule_equals_the_original(golden):
    arrays = np.load(golden / "train_golden.npz")
    steps, values = arrays["lr/cosine/2048/steps"], arrays["lr/cosine/2048/values"]
    keys = phase(epochs=350, learning_rate=0.016, scale_learning_rate=True, schedule="cosine", warmup=5)
    schedule = make_schedule(keys, steps=218949, steps_per_epoch=IMAGENET / 2048, batch_size=2048)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.asarray(steps.astype(np.int32))), values, rtol=5e-7, atol=1e-9)


def test_durations_are_in_the_unit_of_the_phase():
    in_epochs = make_schedule(phase(epochs=10, warmup=2, learning_rate=1.0, schedule="constant"), steps=50,
                              steps_per_epoch=5.0, batch_size=8)  # fmt: skip
    in_steps = make_schedule(phase(steps=50, warmup=2, learning_rate=1.0, schedule="constant"), steps=50,
                             steps_per_epoch=5.0, batch_size=8)  # fmt: skip
    assert [float(in_epochs(step)) for step in (0, 5, 10, 49)] == [0.0, 0.5, 1.0, 1.0]
    assert [float(in_steps(step)) for step in (0, 1, 2, 49)] == [0.0, 0.5, 1.0, 1.0]
    assert phase_steps(phase(epochs=0.5), 5.4) == 3
    assert phase_steps(phase(epochs=0.01), 5.4) == 1


def test_factors_of_units_scale_their_updates():
    plan = FreezePlan("lite0", ("block7:",))
    assert unit_factors(plan, 0.5) == {"block7a": 0.25, "top": 0.5, "classifier": 1.0}
    assert unit_factors(plan, 1.0, {"classifier": 10.0, "stem": 2.0})["classifier"] == 10.0
    params = {
        unit: {layer: {"kernel": jnp.ones(3)}} for unit, layer in (("block7a", "project_conv"), ("top", "conv"))
    } | {"stem": {"conv": {"kernel": jnp.ones(3)}}}
    keys = phase(steps=1, layer_decay=0.5, learning_rate=1.0, schedule="constant", momentum=0.0)
    optimizer = make_optimizer(keys, plan, lambda step: 1.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    moved = {unit: float(next(iter(layers.values()))["kernel"][0]) for unit, layers in updates.items()}
    assert moved == {"block7a": -0.25, "top": -0.5, "stem": 0.0}


def test_clipping_looks_at_trained_leaves_only():
    plan = FreezePlan("lite0", ("top",))
    params = {"top": {"conv": {"kernel": jnp.array([3.0, 4.0])}}, "stem": {"conv": {"kernel": jnp.array([1e6])}}}
    keys = phase(steps=1, clip_norm=1.0, momentum=0.0)
    optimizer = make_optimizer(keys, plan, lambda step: 1.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["top"]["conv"]["kernel"], [-0.6, -0.8], rtol=1e-6)


def test_weight_decay_spares_batch_norm_and_biases_on_request():
    plan = FreezePlan("lite0", ("all",), batch_norm="train")
    params = {"top": {"conv": {"kernel": jnp.ones(1)}, "bn": {"scale": jnp.ones(1), "bias": jnp.ones(1)}},
              "classifier": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}  # fmt: skip
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved = {}
    for decay_biases in (True, False):
        keys = phase(steps=1, weight_decay=0.1, momentum=0.0, decay_biases=decay_biases)
        optimizer = make_optimizer(keys, plan, lambda step: 1.0)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        moved[decay_biases] = jax.tree.map(lambda leaf: round(float(leaf[0]), 6) + 0.0, updates)
    assert moved[True]["top"] == moved[False]["top"] == {"conv": {"kernel": -0.1}, "bn": {"scale": 0.0, "bias": 0.0}}
    assert moved[True]["classifier"] == {"kernel": -0.1, "bias": -0.1}
    assert moved[False]["classifier"] == {"kernel": -0.1, "bias": 0.0}


@pytest.mark.parametrize("mode", ["pjit", "pmap"])
def test_a_plateau_lowers_the_rate_between_steps_only(mode):
    keys = phase(steps=20, schedule="plateau", learning_rate=1.0, momentum=0.0, warmup=2, plateau_factor=0.5,
                 plateau_patience=2)  # fmt: skip
    schedule = make_schedule(keys, steps=20, steps_per_epoch=1.0, batch_size=8)
    optimizer = make_optimizer(keys, FreezePlan("lite0", ("top",)), schedule)
    params = {unit: {"conv": {"kernel": jnp.ones(3)}} for unit in ("stem", "top")}
    partition = make_partition(mode)
    traced = []

    def step(opt_state, batch):
        traced.append(mode)
        updates, opt_state = optimizer.update(params, opt_state, params)
        return opt_state, {"moved": -updates["top"]["conv"]["kernel"][0], "frozen": updates["stem"]["conv"]["kernel"]}

    compiled = partition.compile_train_step(step)
    batch = partition.place_batch({"index": np.arange(8)})
    state = partition.place_state(optimizer.init(params))
    rates = []
    # The third loss is lower by too little to count; 0.4 is the next that counts.
    for loss in (1.0, 0.5, 0.49999, 0.7, 0.6, 0.5, 0.4, 0.4):
        for _ in range(2):
            state, moved = compiled(state, batch)
            rates.append(float(moved["moved"]))
            assert not np.any(moved["frozen"])
        state = observe(keys, state, loss)
    assert rates[:4] == [0.0, 0.5, 1.0, 1.0]  # the warm-up, and the peak
    assert rates[4:] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert plateau_scale(state) == 0.25 and len(traced) == 1
    assert plateau_scale(make_optimizer(phase(steps=1), FreezePlan("lite0", ("top",)), schedule).init(params)) == 1.0
