import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from effnet_jax.train.partition import make_partition
from effnet_jax.train.steps import example_keys, make_eval_step


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def same_bits(first, second):
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw", "lamb", "lars"])
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


def test_eight_devices_get_the_losses_of_one(make_step, batch):
    losses = {}
    for mode, count in (("pjit", 1), ("pjit", 8), ("pmap", 8)):
        partition = make_partition(mode, jax.devices()[:count])
        _, state, step = make_step(
            train=("block7:",), learning_rate=0.01, axis_name=partition.axis_name, ema=0.9, clip_norm=1.0
        )
        state, step = partition.place_state(state), partition.compile_train_step(step)
        rows = []
        for _ in range(4):
            state, metrics = step(state, partition.place_batch(batch))
            rows.append([float(metrics[key]) for key in ("loss", "accuracy", "gradient_norm")])
        losses[mode, count] = np.array(rows)
        assert losses[mode, count][-1, 0] < losses[mode, count][0, 0]
    np.testing.assert_allclose(losses["pjit", 8], losses["pjit", 1], rtol=1e-4)
    np.testing.assert_allclose(losses["pmap", 8], losses["pjit", 1], rtol=1e-4)


def test_noise_belongs_to_seed_purpose_step_and_example():
    def draw(seed, purpose, step, index):
        keys = example_keys(seed, purpose, jnp.asarray(step), jnp.asarray(index))
        return [jax.random.key_data(key).tolist() for key in keys]

    assert draw(0, 1, 5, [7, 3]) == draw(0, 1, 5, [3, 7])[::-1]
    others = [draw(1, 1, 5, [7]), draw(0, 2, 5, [7]), draw(0, 1, 6, [7]), draw(0, 1, 5, [8])]
    assert draw(0, 1, 5, [7]) not in others


def test_evaluation_counts_only_what_the_mask_keeps(lite0, batch):
    model, variables = lite0
    evaluate = jax.jit(make_eval_step(model, resolution=32))
    images = batch["image"].astype(np.float32)
    whole = evaluate(variables, {"image": images, "label": batch["label"], "mask": np.ones(16, np.float32)})
    mask = (np.arange(16) < 11).astype(np.float32)
    padded = np.where(mask[:, None, None, None] > 0, images, np.nan)
    part = evaluate(variables, {"image": padded, "label": batch["label"], "mask": mask})
    logits = model.apply(variables, batch["image"].astype(np.float32))
    losses = -jax.nn.log_softmax(logits)[np.arange(16), batch["label"]]
    hits = np.argmax(logits, -1) == batch["label"]
    assert (float(whole["count"]), float(part["count"])) == (16, 11)
    assert (float(whole["correct"]), float(part["correct"])) == (hits.sum(), hits[:11].sum())
    np.testing.assert_allclose(float(whole["loss"]), losses.sum(), rtol=1e-5)
    np.testing.assert_allclose(float(part["loss"]), losses[:11].sum(), rtol=1e-5)
