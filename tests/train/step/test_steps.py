import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from effnet_jax.train.config import phase
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.train.step.optimizers import make_optimizer
from effnet_jax.train.step.partition import make_partition
from effnet_jax.train.step.state import create_state
from effnet_jax.train.step.steps import (
    PURPOSE_MODEL,
    Inputs,
    cross_entropy,
    example_keys,
    example_weights,
    make_eval_step,
    make_train_step,
    view_keys,
)

OTHERS = ("rmsprop", "lamb", "lars")


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def same_bits(first, second):
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


# Each compiles a whole step.
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", *(pytest.param(x, marks=pytest.mark.slow) for x in OTHERS)])
def test_frozen_leaves_and_statistics_do_not_move_and_hold_no_state(make_step, batch, optimizer):
    plan, state, step = make_step(
        train=("block7", "classifier"), optimizer=optimizer, weight_decay=0.1, clip_norm=1.0, ema=0.9, layer_decay=0.8
    )
    before = jax.tree.map(np.asarray, state)
    step = jax.jit(step)
    for _ in range(20):
        state, metrics = step(state, batch)

    assert np.isfinite(metrics["loss"])
    flat = traverse_util.flatten_dict(state.params)
    for path, old in traverse_util.flatten_dict(before.params).items():
        moved = not same_bits(np.asarray(flat[path]), old)
        assert moved == plan.is_trained(path), path
    for name, old in leaves(before.batch_stats).items():
        assert same_bits(leaves(state.batch_stats)[name], old), name
        assert same_bits(leaves(state.ema["batch_stats"])[name], old), name
    averages = traverse_util.flatten_dict(state.ema["params"])
    for path, old in traverse_util.flatten_dict(before.params).items():
        assert same_bits(np.asarray(averages[path]), old) != plan.is_trained(path), path

    trained = {leaf.shape for path, leaf in flat.items() if plan.is_trained(path)}
    in_state = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    copies = {"sgd": 1, "rmsprop": 2, "adamw": 2, "lamb": 2, "lars": 1}[optimizer]
    assert len(in_state) == copies * sum(plan.is_trained(path) for path in flat)
    assert {leaf.shape for leaf in in_state} == trained


def test_batch_norm_in_train_mode_moves_statistics_of_trained_units_only(make_step, batch):
    plan, state, step = make_step(train=("block7", "classifier"), batch_norm="train")
    before = jax.tree.map(np.asarray, state.batch_stats)
    state, _ = jax.jit(step)(state, batch)
    for unit, layers in before.items():
        for name, old in leaves(layers).items():
            assert same_bits(leaves(state.batch_stats[unit])[name], old) == (unit != "block7a"), (unit, name)
    assert plan.batch_norm_units == ("block7a", "classifier")


def test_training_the_classifier_costs_little_more_than_the_forward_pass(make_step, batch, lite0):
    model, variables = lite0
    _, state, step = make_step(train=("classifier",), optimizer="adamw", weight_decay=1e-4, clip_norm=1.0)
    images = batch["image"].astype(np.float32)
    forward = jax.jit(model.apply).lower(variables, images).compile().cost_analysis()["flops"]
    training = jax.jit(step).lower(state, batch).compile().cost_analysis()["flops"]
    assert training <= 1.1 * forward


# name: (mode, devices, fsdp, what is sharded, microbatches)
LAYOUTS = {
    "pjit": ("pjit", 8, 1, "state", 1),
    "pmap": ("pmap", 8, 1, "state", 1),
    "fsdp": ("pjit", 8, 8, "state", 1),
    "data and fsdp": ("pjit", 8, 2, "state", 2),
    "sharded optimizer": ("pjit", 8, 4, "optimizer", 1),
    "microbatches": ("pjit", 1, 1, "state", 4),
}


@pytest.fixture(scope="module")
def four_steps(make_step, batch):
    """A function from a layout to (loss, accuracy and norm of four steps, the state after them)."""

    def run(mode, count, fsdp, sharded, microbatches, **keys):
        # In another order than JAX's own, as a torus may give it.
        devices = jax.devices()[:count][::-1]
        partition = make_partition(mode, devices, fsdp=fsdp, sharded=sharded, microbatches=microbatches)
        _, state, step = make_step(partition=partition, ema=0.9, clip_norm=1.0, **keys)
        state, step = partition.place_state(state), partition.compile_train_step(step)
        rows = []
        for _ in range(4):
            given, (state, metrics) = state, step(state, partition.place_batch(batch))
            assert given.params["block7a"]["expand_conv"]["kernel"].is_deleted()  # the state is given away
            rows.append([float(metrics[key]) for key in ("loss", "accuracy", "gradient_norm")])
        for leaf, wanted in zip(*map(jax.tree.leaves, (state, partition.state_shardings(state))), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
        return np.array(rows), state

    return run


@pytest.fixture(scope="module")
def one_device(four_steps):
    return four_steps("pjit", 1, 1, "state", 1, train=("block7:",), learning_rate=0.01)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_losses_are_the_same_however_state_and_batch_lie(four_steps, one_device, layout):
    rows, _ = four_steps(*layout, train=("block7:",), learning_rate=0.01)
    assert rows[-1, 0] < rows[0, 0]
    np.testing.assert_allclose(rows, one_device[0], rtol=1e-4)


def test_batch_norm_that_is_trained_sees_the_batch_of_all_devices(four_steps):
    keys = {"train": ("block7:",), "batch_norm": "train", "learning_rate": 0.01}
    one, state = four_steps("pjit", 1, 1, "state", 1, **keys)
    eight, on_eight = four_steps("pjit", 8, 2, "state", 1, **keys)
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    for name, value in leaves(state.batch_stats["block7a"]).items():
        np.testing.assert_allclose(
            leaves(on_eight.batch_stats["block7a"])[name], value, rtol=1e-4, atol=1e-6, err_msg=name
        )


def test_noise_belongs_to_seed_purpose_step_and_example():
    def draw(seed, purpose, step, index):
        keys = example_keys(seed, purpose, jnp.asarray(step), jnp.asarray(index))
        return [jax.random.key_data(key).tolist() for key in keys]

    assert draw(0, 1, 5, [7, 3]) == draw(0, 1, 5, [3, 7])[::-1]
    others = [draw(1, 1, 5, [7]), draw(0, 2, 5, [7]), draw(0, 1, 6, [7]), draw(0, 1, 5, [8])]
    assert draw(0, 1, 5, [7]) not in others


class Linear:
    """Three matrices with noise, and a statistic that follows the logits: what a step asks of a model, and no more."""

    def apply(self, variables, images, *, first, train, update_batch_norm, key, mutable, method):
        assert first is None and method == "run"
        params = variables["params"]
        noise = 1.0 + 0.1 * jax.vmap(jax.random.normal)(key)
        hidden = images.reshape(len(images), -1) @ params["stem"]["conv"]["kernel"]
        hidden = jnp.tanh(hidden @ params["top"]["conv"]["kernel"] * noise[:, None])
        logits = hidden @ params["classifier"]["kernel"]
        return logits, {"batch_stats": {"top": {"bn": {"mean": jnp.mean(hidden, 0)}}}}


RHO, RATE = 0.5, 0.1


@pytest.fixture
def linear():
    """A function from `sam` to (first state, uncompiled step, batch); the stem is frozen."""
    draw = np.random.default_rng(0).normal
    params = {
        "stem": {"conv": {"kernel": jnp.asarray(draw(size=(6, 5)), jnp.float32)}},
        "top": {"conv": {"kernel": jnp.asarray(draw(size=(5, 5)), jnp.float32)}},
        "classifier": {"kernel": jnp.asarray(draw(size=(5, 3)), jnp.float32)},
    }
    batch = {
        "image": draw(size=(16, 6)).astype(np.float32),
        "label": np.arange(16, dtype=np.int32) % 3,
        "index": np.arange(16, dtype=np.int32),
    }

    def augment(batch, keys):
        del keys
        return batch["image"], jax.nn.one_hot(batch["label"], 3)

    def make(sam, partition=None, augment=augment, **given):
        plan = FreezePlan("lite0", ("top", "classifier"), batch_norm="train")
        keys = phase(steps=1, momentum=0.0, weight_decay=0.01, sam=sam)
        optimizer = make_optimizer(keys, plan, lambda step: RATE)
        statistics = {"top": {"bn": {"mean": jnp.zeros(5)}}}
        state = create_state({"params": params, "batch_stats": statistics}, optimizer, ema=False, seed=3)
        averaged = {"averaged": partition.averaged_gradients} if partition else {}
        return (
            state,
            make_train_step(Linear(), plan, optimizer, Inputs(augment, **given), **averaged),
            batch,
        )

    return make


def test_sam_takes_the_gradient_uphill_and_all_else_where_the_weights_are(linear):
    state, step, batch = linear(RHO)
    plain = jax.jit(linear(0.0)[1])(linear(0.0)[0], batch)
    sharp = jax.jit(step)(state, batch)

    def loss(trained):
        params = {**trained, "stem": state.params["stem"]}
        noise = example_keys(3, PURPOSE_MODEL, state.step, batch["index"])
        logits, _ = Linear().apply(
            {"params": params},
            batch["image"],
            first=None,
            train=None,
            update_batch_norm=None,
            key=noise,
            mutable=None,
            method="run",
        )
        return jnp.mean(cross_entropy(logits, jax.nn.one_hot(batch["label"], 3)))

    trained = {unit: state.params[unit] for unit in ("top", "classifier")}
    gradients = jax.grad(loss)(trained)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradients)))
    uphill = jax.grad(loss)(jax.tree.map(lambda leaf, gradient: leaf + RHO * gradient / norm, trained, gradients))
    for unit, leaf in trained.items():
        # Plain SGD on the second gradient; weight decay looks at the weights and not at the perturbed ones.
        wanted = jax.tree.map(lambda leaf, gradient: leaf - RATE * (gradient + 0.01 * leaf), leaf, uphill[unit])
        (found,), (wanted,) = jax.tree.leaves(sharp[0].params[unit]), jax.tree.leaves(wanted)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        assert np.abs(found - jax.tree.leaves(plain[0].params[unit])[0]).max() > 1e-3
    assert same_bits(*(np.asarray(one.params["stem"]["conv"]["kernel"]) for one in (sharp[0], state)))
    np.testing.assert_allclose(*(one[0].batch_stats["top"]["bn"]["mean"] for one in (sharp, plain)), rtol=1e-6)
    for name, value in plain[1].items():
        np.testing.assert_allclose(sharp[1][name], value, rtol=1e-6)


def test_sam_sees_one_batch_on_any_number_of_devices(linear):
    weights = []
    for mode, count in (("pjit", 1), ("pjit", 8), ("pmap", 8)):
        partition = make_partition(mode, jax.devices()[:count])
        state, step, batch = linear(RHO, partition)
        state, step = partition.place_state(state), partition.compile_train_step(step)
        for _ in range(3):
            state, _ = step(state, partition.place_batch(batch))
        weights.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]))
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights[2], weights[0], rtol=1e-5, atol=1e-6)


def test_a_class_counts_as_its_weight_says_on_any_number_of_devices(linear):
    """Of two classes one counts nothing and one three times: as if the batch had that class's images alone, trebled."""
    weights = np.array([0.0, 3.0, 0.0], np.float32)
    moved = []
    for mode, count, pieces in (("pjit", 1, 1), ("pjit", 8, 1), ("pmap", 8, 1), ("pjit", 2, 4)):
        partition = make_partition(mode, jax.devices()[:count], microbatches=pieces)
        state, step, batch = linear(0.0, partition, class_weights=weights)
        state, step = partition.place_state(state), partition.compile_train_step(step)
        new, metrics = step(state, partition.place_batch(batch))
        moved.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(new.params)]))
    np.testing.assert_allclose(moved[1], moved[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved[2], moved[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved[3], moved[0], rtol=1e-5, atol=1e-6)
    state, step, batch = linear(0.0)
    chosen = batch["label"] == 1
    alone = {name: value[chosen] for name, value in batch.items()}
    _, plain = jax.jit(step)(state, alone)
    np.testing.assert_allclose(metrics["loss"], 3.0 * plain["loss"] * chosen.mean(), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_an_example_counts_by_the_classes_that_it_shows(smoothing):
    shares = np.array([[1, 0, 0], [0, 0, 1], [0.75, 0, 0.25]], np.float32)  # the last one is mixed
    targets = shares * (1 - smoothing) + smoothing / 3
    weights = np.array([0.5, 1.0, 40.0], np.float32)
    np.testing.assert_allclose(example_weights(targets, weights, smoothing), [0.5, 40.0, 10.375], rtol=1e-5)


def test_the_loss_of_smoothed_targets_is_weighted_as_a_whole(linear):
    """A common class's image must not be pulled towards a rare one, whose weight its smoothing would have."""

    def smoothed(batch, keys):
        del keys
        return batch["image"], jax.nn.one_hot(batch["label"], 3) * 0.9 + 0.1 / 3

    weights = np.array([0.5, 0.5, 60.0], np.float32)
    state, step, batch = linear(0.0, augment=smoothed, class_weights=weights, smoothing=0.1)
    common = {name: value[batch["label"] == 0] for name, value in batch.items()}
    _, weighted = jax.jit(step)(state, common)
    state, step, _ = linear(0.0, augment=smoothed)
    _, plain = jax.jit(step)(state, common)
    np.testing.assert_allclose(weighted["loss"], 0.5 * plain["loss"], rtol=1e-5)
    np.testing.assert_allclose(weighted["gradient_norm"], 0.5 * plain["gradient_norm"], rtol=1e-5)


def test_an_example_that_comes_twice_in_a_step_is_seen_in_two_ways():
    batch = {"index": jnp.array([4, 4, 9]), "epoch": jnp.array([6, 7, 0])}

    def keys(step, **options):
        return [tuple(key.tolist()) for key in jax.random.key_data(view_keys(1, jnp.int32(step), batch, **options))]

    assert len(set(keys(3))) == 2 and len(set(keys(3, repeats=True))) == 3
    assert keys(3, repeats=True) == keys(8, repeats=True)
    assert keys(3, views=4, repeats=True) == keys(3, views=4)  # as the trunk cache has them


def test_noise_differs_where_an_example_comes_twice_in_a_step(linear):
    seen = []

    class Noisy(Linear):
        def apply(self, *arguments, key, **options):
            jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(key))
            return super().apply(*arguments, key=key, **options)

    state, _, batch = linear(0.0)
    batch |= {"index": np.full(16, 5, np.int32), "epoch": np.arange(16, dtype=np.int32)}
    plan = FreezePlan("lite0", ("top", "classifier"), batch_norm="train")
    optimizer = make_optimizer(phase(steps=1), plan, lambda step: RATE)
    state = state.replace(opt_state=optimizer.init(state.params))
    for repeats in (False, True):
        inputs = Inputs(lambda batch, keys: (batch["image"], jax.nn.one_hot(batch["label"], 3)), repeats=repeats)
        jax.block_until_ready(jax.jit(make_train_step(Noisy(), plan, optimizer, inputs))(state, batch))
        jax.effects_barrier()
    assert [len({tuple(key) for key in keys.tolist()}) for keys in seen] == [1, 16]


def test_sam_stays_put_where_the_gradient_is_zero(linear):
    state, step, batch = linear(RHO)
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))  # no image tells the classes apart
    new, _ = jax.jit(step)(state, {**batch, "image": np.zeros_like(batch["image"])})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params))


def test_evaluation_counts_only_what_the_mask_keeps(lite0, batch):
    model, variables = lite0
    evaluate = jax.jit(make_eval_step(model, resolution=32))
    images = batch["image"].astype(np.float32)
    whole = evaluate(variables, {"image": images, "label": batch["label"], "mask": np.ones(16, np.float32)})
    mask = (np.arange(16) < 11).astype(np.float32)
    padded = np.where(mask[:, None, None, None] > 0, images, np.nan)
    part = evaluate(variables, {"image": padded, "label": batch["label"], "mask": mask})
    logits = jax.jit(model.apply)(variables, batch["image"].astype(np.float32))
    losses = -jax.nn.log_softmax(logits)[np.arange(16), batch["label"]]
    hits = np.argmax(logits, -1) == batch["label"]
    assert (float(whole["count"]), float(part["count"])) == (16, 11)
    assert (float(whole["correct"]), float(part["correct"])) == (hits.sum(), hits[:11].sum())
    np.testing.assert_allclose(float(whole["loss"]), losses.sum(), rtol=1e-5)
    np.testing.assert_allclose(float(part["loss"]), losses[:11].sum(), rtol=1e-5)
