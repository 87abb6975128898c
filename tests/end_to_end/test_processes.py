"""A run of two processes, as on two hosts, is the run of one."""

import json

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
        # Near zero a loss has the rounding of its logits.
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
        assert row["accuracy"] == expected["accuracy"]
    assert (tmp_path / "two" / "weights_ema").is_dir()
