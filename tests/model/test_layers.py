import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax.model import layers


@pytest.fixture(scope="module")
def batch_norm_golden(golden_file):
    return np.load(golden_file("train_golden.npz"))


def test_batch_norm_equals_the_originals_training_class(batch_norm_golden):
    inputs = jnp.asarray(batch_norm_golden["bn/input"])
    module = layers.BatchNorm()
    outputs, updated = module.apply(module.init(jax.random.key(0), inputs), inputs, True, mutable=["batch_stats"])
    prefix = "bn/training_class/"
    np.testing.assert_allclose(outputs, batch_norm_golden[prefix + "output"], rtol=1e-5, atol=1e-5)
    for ours, theirs in (("mean", "moving_mean"), ("var", "moving_variance")):
        np.testing.assert_allclose(updated["batch_stats"][ours], batch_norm_golden[prefix + theirs], rtol=1e-6)


@pytest.mark.parametrize("groups", [None, ((0, 1), (2, 3))])
def test_replicas_share_batch_statistics_in_their_group(groups):
    inputs = jax.random.normal(jax.random.key(0), (4, 2, 3, 3, 5)) * 3 + 1
    single = layers.BatchNorm()
    variables = single.init(jax.random.key(0), inputs[0])
    shared = layers.BatchNorm(axis_name="replicas", axis_groups=groups)

    def run(images):
        return shared.apply(variables, images, True, mutable=["batch_stats"])

    outputs, updated = jax.pmap(run, axis_name="replicas", devices=jax.devices()[:4])(inputs)
    for group in groups or ((0, 1, 2, 3),):
        members = np.array(group)
        together, expected = single.apply(
            variables, inputs[members].reshape(-1, 3, 3, 5), True, mutable=["batch_stats"]
        )
        np.testing.assert_allclose(outputs[members].reshape(together.shape), together, rtol=1e-4, atol=1e-4)
        for leaf in ("mean", "var"):
            np.testing.assert_allclose(
                updated["batch_stats"][leaf][group[0]], expected["batch_stats"][leaf], rtol=1e-4, atol=1e-5
            )


def test_stochastic_depth_keeps_the_expectation():
    keys = jax.random.split(jax.random.key(0), 4000)
    outputs = layers.stochastic_depth(jnp.ones((4000, 1, 1, 1)), layers.survival(keys, 0.8))
    assert set(np.unique(outputs).round(4)) == {0.0, 1.25}
    assert float(outputs.mean()) == pytest.approx(1.0, abs=0.03)


def test_dropout_keeps_the_expectation():
    keys = jax.random.split(jax.random.key(0), 50)
    outputs = layers.dropout(jnp.ones((50, 400)), keys, 0.2)
    assert float((outputs == 0).mean()) == pytest.approx(0.2, abs=0.02)
    assert float(outputs.mean()) == pytest.approx(1.0, abs=0.02)
