"""How a run goes, apart from its numbers: programs kept between starts, and who waits for images."""

import json
import re

import pytest

from tests import runs

SLOW_IMAGES = """
import os, time
from effnet_jax.data import loader

if "SLOW_IMAGES" in os.environ:
    train_batches = loader.train_batches
    def slow_batches(*arguments, **settings):
        for batch in train_batches(*arguments, **settings):
            time.sleep(0.3)
            yield batch
    loader.train_batches = slow_batches
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_programs_that_were_kept_give_the_same_numbers(recipe, tmp_path, monkeypatch, processes):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    folder = tmp_path / "programs"
    epochs = [f"--config.phases[{number}].epochs=1" for number in range(3)]

    def run(name, place):
        flags = [*epochs, f"--config.compile_cache={place}"]
        started = runs.run(recipe, tmp_path / name, processes=processes, flags=flags)
        assert (f"compiled programs are kept in {place}" in started[0].text()) == (place != "off")
        compiling = json.loads((tmp_path / name / "summary.json").read_text())["first_step"]["compiling"]
        return runs.outcome(tmp_path / name), compiling

    first, second = run("first", folder), run("second", folder)
    assert second[0] == first[0] and second[1] < first[1]
    assert list(folder.glob("*-cache")) and not list(folder.glob(".*"))
    if processes == 1:
        assert run("without", "off")[0] == first[0]


@pytest.mark.slow
def test_the_process_that_waits_for_its_images_is_named_and_each_has_its_trace(recipe, tmp_path):
    recipe.write_text(SLOW_IMAGES + recipe.read_text())
    flags = ["--config.profile_steps=3,4", *(f"--config.phases[{number}].cache=" for number in range(2))]
    started = runs.run(recipe, tmp_path / "run", processes=2, flags=flags, environments={1: {"SLOW_IMAGES": "1"}})
    said = re.findall(r"process (\d) \(.+\) waits (\d+) % for its images, the others up to (\d+) %", started[0].text())
    assert len(said) == 9 and {slowest for slowest, _, _ in said} == {"1"}  # at each epoch's end
    assert all(int(most) > 50 and int(others) < 30 for _, most, others in said)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [round(100 * row["input_wait"]) for row in rows if row["split"] == "train"]
    assert shares == pytest.approx([int(most) for _, most, _ in said], abs=1)
    for process in range(2):
        folder = tmp_path / "run" / "profile" / f"process_{process}" / "plugins" / "profile" / "steps_3_4"
        assert list(folder.glob("*.xplane.pb"))
