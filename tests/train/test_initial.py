import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax.model.layers import BatchNorm
from effnet_jax.train.config import check_config
from effnet_jax.train.initial import make_model
from effnet_jax.train.step.partition import AXIS


@pytest.mark.parametrize(("group", "shared_by"), [(0, 8), (8, 8), (4, 4), (2, 2), (1, 1)])
def test_a_group_of_replicas_shares_its_batch_statistics(group, shared_by):
    given = {"weights": "w", "data": {"name": "x"}, "phases": [{"epochs": 1}]}
    model = make_model(check_config({**given, "partition": {"mode": "pmap", "batch_norm_group": group}}), None, 4, 8)
    layer = BatchNorm(momentum=0.0, axis_name=model.batch_norm_axis, axis_groups=model.batch_norm_groups)
    values = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)  # [replica, N, C]

    def statistics(inputs):
        variables = {
            "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
            "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
        }
        return layer.apply(variables, inputs, update=True, mutable=["batch_stats"])[1]["batch_stats"]

    found = jax.pmap(statistics, AXIS)(values)
    groups = values.reshape(8 // shared_by, -1, 3)
    for name, of_group in (("mean", groups.mean(1)), ("var", groups.var(1))):
        np.testing.assert_allclose(found[name], np.repeat(of_group, shared_by, axis=0), rtol=1e-4, atol=1e-5)


def test_one_program_for_all_devices_has_no_replicas():
    model = make_model(check_config({"weights": "w", "data": {"name": "x"}, "phases": [{"epochs": 1}]}), None, 4, 8)
    assert model.batch_norm_axis is None and model.batch_norm_groups is None
