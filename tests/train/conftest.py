"""What the tests of training share: a small model, batches, and one phase of a config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax.model.efficientnet import create_model
from effnet_jax.train.config import phase
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.train.step.optimizers import make_optimizer, make_schedule
from effnet_jax.train.step.partition import AXES
from effnet_jax.train.step.state import create_state
from effnet_jax.train.step.steps import make_train_step
from tests import synthetic

CLASSES = 4


@pytest.fixture(scope="session")
def lite0():
    """Lite0 of 4 classes: the model and its synthetic variables."""
    return create_model("lite0", num_classes=CLASSES), synthetic.variables("lite0", num_classes=CLASSES)


@pytest.fixture(scope="session")
def batch():
    """16 images of 32×32 with their labels."""
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (16, 32, 32, 3), np.uint8),
        "aspect": np.ones(16, np.float32),
        "label": random.integers(0, CLASSES, 16).astype(np.int32),
        "index": np.arange(16, dtype=np.int32),
    }


def plain_augment(batch, keys):
    """No augmentation: the images and one-hot targets."""
    del keys
    return batch["image"].astype(jnp.float32), jax.nn.one_hot(batch["label"], CLASSES)


@pytest.fixture(scope="session")
def make_step(lite0):
    """A function from a phase's keys to (its plan, its first state, its uncompiled step)."""
    model, variables = lite0

    def make(ema=0.0, seed=0, partition=None, batch_norm="frozen", **keys):
        keys = phase(**{"steps": 20, "schedule": "constant", "learning_rate": 1e-3, **keys})
        plan = FreezePlan("lite0", tuple(keys.train), batch_norm)
        schedule = make_schedule(keys, steps=20, steps_per_epoch=1.0, batch_size=16)
        optimizer = make_optimizer(keys, plan, schedule)
        state = create_state(jax.tree.map(jnp.asarray, variables), optimizer, ema=bool(ema), seed=seed)
        averaged = {"averaged": partition.averaged_gradients} if partition else {}
        sharing = {"batch_norm_axis": AXES} if partition and partition.mesh.size > 1 else {}
        step = make_train_step(
            dataclasses.replace(model, **sharing),
            plan, optimizer, plain_augment, ema_decay=ema, **averaged,
        )  # fmt: skip
        return plan, state, step

    return make
