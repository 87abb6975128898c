"""Recipes: each is complete and valid as it stands, and its smoke form is short."""

from pathlib import Path

import pytest

from effnet_jax.train.__main__ import parse_command
from effnet_jax.train.config import check_config
from effnet_jax.train.loop import train
from effnet_jax.train.phases import make_phases
from tests import synthetic

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.py"))
CIFAR = {"train": 47_500, "validation": 2_500, "test": 10_000}


def read(path, mode=""):
    flag = f"--config={path}{':' if mode else ''}{mode}"
    return check_config(parse_command(["train", flag, "--workdir=runs/x"]).config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_names_its_command(path):
    config = read(path)
    assert f"configs/{path.name}" in path.read_text() or "make quickstart" in path.read_text()
    phases = make_phases(config, CIFAR)  # its caches fit their budgets
    assert phases[0].plan.trains_classifier
    if config.weights:
        assert phases[0].plan.trained_units == ("classifier",), "the classifier first"
        assert all(phase.plan.batch_norm == "frozen" for phase in phases)


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "quickstart"], ids=lambda path: path.stem)
def test_the_smoke_form_is_short(path):
    config = read(path, "smoke")
    images = {"train": 400}
    if config.data.name == "cifar100":
        images = {"train": int(config.data.train.strip("train[:]"))}
    assert images["train"] <= 512 and config.resolution <= 64
    assert make_phases(config, images | {"validation": 64})[-1].end <= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar100_b0", "cifar100_b0_cpu", "cifar100_b0_scratch"])
def test_the_smoke_form_runs_on_cifar100(name, shared, tmp_path):
    synthetic.write_weights_dir(tmp_path / "b0", "b0")
    config = read(ROOT / "configs" / f"{name}.py", "smoke").copy_and_resolve_references()
    config.data.data_dir = str(shared / "data" / "tfds")
    if config.weights:
        config.weights = str(tmp_path / "b0")
    summary = train(config, tmp_path / "run")
    assert len(summary["phases"]) == len(config.phases) and summary["test"]["count"] == 64
