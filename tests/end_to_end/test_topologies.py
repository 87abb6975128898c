"""The same run on any number of devices and processes, in any order of the mesh."""

import json
import random

import jax
import numpy as np
import pytest

from effnet_jax.train.__main__ import parse_command
from effnet_jax.train.config import check_config
from effnet_jax.train.loop import train
from effnet_jax.weights.port import port_checkpoint
from tests import runs

# 50 steps of B0 at 64 pixels over three phases, with what takes partners by position and what draws for each example.
RECIPE = """
from effnet_jax.train.config import default_config, phase

def get_config(kind="mixed"):
    config = default_config()
    config.variant, config.weights, config.resolution = "b0", {weights!r}, 64
    config.batch_size, config.log_every = 16, 1
    config.data.name, config.data.data_dir = "cifar100", {data!r}
    config.data.train, config.data.validation, config.data.test = "train[:320]", "", ""
    config.augment.flip, config.augment.randaugment = True, (2, 10)
    config.augment.mixup, config.augment.cutmix = 0.2, 0.5
    if kind == "trained":
        config.batch_norm = "train"
    if kind == "replicas":
        config.partition.mode = "pmap"
    if kind == "pieces":
        config.microbatches = 4
    if kind.startswith("fsdp"):
        config.partition.fsdp = int(kind.removeprefix("fsdp"))
    config.phases = (
        phase(name="head", steps=20, learning_rate=0.05),
        phase(name="late", train=("block6:",), steps=15, learning_rate=0.01, keep_optimizer=True),
        phase(name="all", train=("all",), steps=15, learning_rate=0.005, layer_decay=0.9),
    )
    return config
"""


@pytest.fixture(scope="module")
def recipe(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("topologies")
    source = shared / "weights" / "efficientnet_b0_imagenet_tf_names.npz"
    port_checkpoint(source, folder / "b0", variant="b0", family="imagenet")
    path = folder / "recipe.py"
    path.write_text(RECIPE.format(weights=str(folder / "b0"), data=str(shared / "data" / "tfds")))
    return path


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if row["split"] == "step"])


def losses_on(recipe, kind, devices):
    workdir = recipe.with_name(f"{kind}-{len(devices)}-{devices[0].id}")
    if not workdir.exists():
        train(check_config(parse_command(["train", f"--config={recipe}:{kind}", "--workdir=x"]).config), workdir,
              devices=devices)  # fmt: skip
    return losses(workdir)


def shuffled(devices):
    order = list(devices)
    random.Random(1).shuffle(order)
    return order


def largest(found, wanted):
    assert len(found) == len(wanted) == 50
    return float(np.max(np.abs(found - wanted) / wanted))


@pytest.mark.slow
def test_fifty_steps_are_the_same_on_every_topology(recipe):
    one, eight = jax.devices()[:1], jax.devices()
    wanted = losses_on(recipe, "mixed", one)
    runs.run(f"{recipe}:mixed", recipe.with_name("processes"), processes=2, devices=4)
    runs.run(f"{recipe}:fsdp8", recipe.with_name("sharded"), processes=2, devices=4)
    found = {
        "8 devices": largest(losses_on(recipe, "mixed", eight), wanted),
        "8 devices, shuffled": largest(losses_on(recipe, "mixed", shuffled(eight)), wanted),
        "8 devices, state over all 8": largest(losses_on(recipe, "fsdp8", eight), wanted),
        "8 devices, state over pairs": largest(losses_on(recipe, "fsdp2", eight), wanted),
        "8 devices, pmap": largest(losses_on(recipe, "replicas", eight), wanted),
        "1 device, 4 microbatches": largest(losses_on(recipe, "pieces", one), wanted),
        "2 processes of 4 devices": largest(losses(recipe.with_name("processes")), wanted),
        "2 processes of 4 devices, state over all 8": largest(losses(recipe.with_name("sharded")), wanted),
        "8 devices, batch norm trained": largest(
            losses_on(recipe, "trained", eight), losses_on(recipe, "trained", one)
        ),
    }
    print("\nlargest relative difference of 50 losses: " + json.dumps(found, indent=1))
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
def test_a_sharded_run_of_two_processes_goes_on_whole_in_one(recipe):
    workdir = recipe.with_name("moved")
    started = runs.start(f"{recipe}:fsdp8", workdir, processes=2, devices=4)
    runs.wait_for(started[0], "phase late")
    started[1].process.terminate()
    for process in started:
        process.process.wait(120)
    runs.run(f"{recipe}:mixed", workdir, processes=1, devices=1)
    assert largest(losses(workdir), losses_on(recipe, "mixed", jax.devices()[:1])) < 1e-5
