"""Two training steps of B0 as the original made them: batch norm on the batch, RMSProp, warm-up, weight decay, EMA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effnet_jax.model.efficientnet import create_model
from effnet_jax.model.variants import VARIANTS
from effnet_jax.train.config import phase
from effnet_jax.train.freeze import FreezePlan
from effnet_jax.train.optimizers import RMSPROP_EPSILON, make_optimizer, make_schedule
from effnet_jax.train.state import create_state
from effnet_jax.train.steps import make_train_step
from effnet_jax.weights import names
from tests import synthetic

FIRST_STEP = 7
WEIGHT_DECAY = 1e-5
GRADIENTS = 2e-5  # of the largest value; measured: 1.1e-5 for one depthwise kernel, less than 1e-5 for all others


@pytest.fixture(scope="session")
def golden_train(golden):
    return dict(np.load(golden / "train_golden.npz"))


def smoothed(batch, keys):
    del keys
    targets = jax.nn.one_hot(batch["label"], 1000) * 0.9 + 0.1 / 1000
    return batch["image"].astype(jnp.float32), targets


@pytest.fixture(scope="session")
def steps(golden_train):
    """The states after 0, 1 and 2 steps, and the metrics of both."""
    model = create_model("b0", dropout=0.0, survival_prob=1.0)
    plan = FreezePlan("b0", ("all",), batch_norm="train")
    keys = phase(
        train=("all",), steps=100, optimizer="rmsprop", momentum=0.9, weight_decay=WEIGHT_DECAY, schedule="exponential",
        learning_rate=0.016, scale_learning_rate=True, warmup=10, decay_every=1000.0,
    )  # fmt: skip
    schedule = make_schedule(keys, steps=100, steps_per_epoch=1.0, batch_size=64)
    optimizer = make_optimizer(keys, plan, lambda step: schedule(step + FIRST_STEP))
    state = create_state(synthetic.variables("b0"), optimizer, ema=True)
    state = state.replace(step=jnp.int32(FIRST_STEP), ema=synthetic.variables("b0", seed=1))
    step = jax.jit(make_train_step(model, plan, optimizer, smoothed, ema_decay=0.9999))
    batch = {"image": golden_train["images"], "label": golden_train["labels"], "index": np.arange(4)}
    states, metrics = [state], []
    for _ in range(2):
        state, values = step(state, batch)
        states.append(state)
        metrics.append(values)
    return states, metrics


def by_tf_name(tree, collection):
    """{TensorFlow name: array in TensorFlow's shape}."""
    result = {}
    for row in names.table(VARIANTS["b0"], 1000):
        kind, *path = row.path.split("/")
        if kind == collection:
            leaf = tree
            for key in path:
                leaf = leaf[key]
            result[row.tf_name] = np.asarray(leaf).reshape(row.tf_shape)
    return result


def slot(state, kind, field):
    """One slot of RMSProp for all parameters, out of the chain of its optimizer."""
    found = [
        getattr(part, field)
        for part in jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, kind))
        if isinstance(part, kind)
    ]
    assert len(found) == 1
    return by_tf_name(found[0], "params")


def close(value, wanted, relative, absolute=0.0):
    wanted = np.asarray(wanted)
    assert value.shape == wanted.shape
    assert np.abs(value - wanted).max() <= relative * np.abs(wanted).max() + absolute


def test_loss(steps, golden_train):
    states, metrics = steps
    for number, values in enumerate(metrics, 1):
        close(np.asarray(values["loss"]), golden_train[f"step{number}/cross_entropy"], 3e-7 if number == 1 else 1e-5)
    kernels = by_tf_name(states[0].params, "params")
    decayed = sum(
        np.square(kernels[name], dtype=np.float64).sum() / 2 for name in kernels if "normalization" not in name
    )
    close(decayed, golden_train["step1/l2_sum_half_squares"], 1e-6)
    total = float(metrics[0]["loss"]) + WEIGHT_DECAY * decayed
    close(np.asarray(total), golden_train["step1/loss"], 3e-7)


def test_gradients(steps, golden_train):
    # From the slots after the first step: momentum = -rate * gradient / sqrt(mean square + epsilon).
    states, _ = steps
    momentum = slot(states[1], optax.TraceState, "trace")
    square = slot(states[1], optax.ScaleByRmsState, "nu")
    rate = golden_train["step1/lr"]
    gradients = {
        name: -momentum[name].astype(np.float64) * np.sqrt(square[name] + RMSPROP_EPSILON) / rate for name in momentum
    }
    compared = 0
    for key, wanted in golden_train.items():
        if key.startswith("step1/grad/"):
            close(gradients[key.removeprefix("step1/grad/")], wanted, GRADIENTS)
        elif key.startswith("step1/grad_slice/"):
            gradient = gradients[key.removeprefix("step1/grad_slice/")]
            close(gradient[..., :16, :16] if gradient.ndim == 4 else gradient[:64, :16], wanted, GRADIENTS)
        else:
            continue
        compared += 1
    assert compared == 19
    prefix = "efficientnet-b0/"
    for name, norm in zip(golden_train["grad_norm_names"], golden_train["grad_norms"], strict=True):
        close(np.linalg.norm(gradients[str(name).removeprefix(prefix)]), norm, 1e-5, absolute=1e-5)


def test_statistics_of_the_batch(steps, golden_train):
    states, _ = steps
    for tree, place in ((states[1].batch_stats, "stats"), (states[1].ema["batch_stats"], "stats_ema")):
        statistics = by_tf_name(tree, "batch_stats")
        keys = [key for key in golden_train if key.startswith(f"step1/{place}/")]
        assert len(keys) == 16
        for key in keys:
            close(statistics[key.removeprefix(f"step1/{place}/")], golden_train[key], 1e-6)


def test_two_steps_of_rmsprop_and_moving_averages(steps, golden_train):
    states, _ = steps
    compared = 0
    for number in (1, 2):
        values = {
            "value": by_tf_name(states[number].params, "params"),
            "ema": by_tf_name(states[number].ema["params"], "params"),
            "mean_square": slot(states[number], optax.ScaleByRmsState, "nu"),
            "momentum": {name: -leaf for name, leaf in slot(states[number], optax.TraceState, "trace").items()},
        }
        for key, wanted in golden_train.items():
            if key.startswith(f"step{number}/after/"):
                name, kind = key.removeprefix(f"step{number}/after/").rsplit("/", 1)
                close(values[kind][name], wanted, 2e-5)
                compared += 1
    assert compared == 40
