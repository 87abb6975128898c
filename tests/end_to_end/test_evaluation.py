"""Evaluation counts every example once, whatever the batch and the devices."""

import jax
import numpy as np
import pytest

from effnet_jax import create_model
from effnet_jax.data.loader import eval_batches, prefetch
from effnet_jax.data.sources import open_source
from effnet_jax.train.step.partition import make_partition
from effnet_jax.train.step.steps import make_eval_step
from tests import synthetic

RESOLUTION = 32


def evaluate(source, model, variables, batch_size, devices):
    partition = make_partition("pjit", devices)
    step = partition.compile_eval_step(make_eval_step(model, resolution=RESOLUTION))
    variables = partition.place_state(variables)
    totals = {"correct": 0.0, "loss": 0.0, "count": 0.0}
    batches = eval_batches(source, batch_size=batch_size, resolution=RESOLUTION, crop="none")
    for batch in prefetch(batches, partition.place_batch):
        for key, value in step(variables, batch).items():
            totals[key] += float(value)
    return totals


@pytest.mark.slow
def test_ten_thousand_images_by_96_on_eight_devices_equal_one_by_one(shared):
    source = open_source({"name": "cifar100", "data_dir": str(shared / "data" / "tfds")}, "test")
    model = create_model("lite0", num_classes=100)
    variables = synthetic.variables("lite0", num_classes=100)
    together = evaluate(source, model, variables, 96, jax.devices())
    single = evaluate(source, model, variables, 1, jax.devices()[:1])
    assert together["count"] == single["count"] == len(source) == 10_000
    assert together["correct"] == single["correct"] > 0
    np.testing.assert_allclose(together["loss"], single["loss"], rtol=1e-5)
