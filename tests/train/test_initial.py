import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax.model.layers import BatchNorm
from effnet_jax.train.config import check_config
from effnet_jax.train.initial import make_model
from effnet_jax.train.step.partition import DATA, make_partition


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

    partition = make_partition("pmap")
    spec = jax.P(("data", "fsdp"))
    mapped = jax.shard_map(
        lambda inputs: jax.tree.map(lambda leaf: leaf[None], statistics(inputs[0])),
        mesh=partition.mesh, in_specs=spec, out_specs=spec, check_vma=False,
    )  # fmt: skip
    found = jax.jit(mapped)(values)
    groups = values.reshape(8 // shared_by, -1, 3)
    for name, of_group in (("mean", groups.mean(1)), ("var", groups.var(1))):
        np.testing.assert_allclose(found[name], np.repeat(of_group, shared_by, axis=0), rtol=1e-4, atol=1e-5)


def test_under_pjit_all_devices_share_their_batch_statistics():
    config = check_config({"weights": "w", "data": {"name": "x"}, "phases": [{"epochs": 1}]})
    model = make_model(config, None, 4, 8)
    assert DATA in model.batch_norm_axis and model.batch_norm_groups is None
    assert make_model(config, None, 4, 1).batch_norm_axis is None
