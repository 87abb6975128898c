"""What a finished run's rows say again for its report."""

import json

import pytest

from effnet_jax import files
from effnet_jax.errors import RunError
from effnet_jax.train.config import check_config, default_config, phase, to_json
from effnet_jax.train.story import advise, read_story


def _config():
    config = default_config()
    config.variant, config.weights, config.data.name, config.resolution = "lite0", "w", "x", 32
    config.phases = (
        phase(name="head", epochs=2, learning_rate=0.01),
        phase(name="blocks", train=("block7:",), epochs=2, layer_decay=0.5, augment={"zoom": (1.0, 1.35)}),
    )
    return check_config(config)


def _rows(*figures):
    return [
        {"step": step, "epoch": float(step), "phase": name, "split": split, "accuracy": accuracy, "loss": loss}
        for step, name, split, accuracy, loss in figures
    ]


def test_the_advice_of_a_run_is_given_again():
    rows = _rows(
        (1, "head", "train", 0.9, 0.4), (1, "head", "validation", 0.85, 0.5), (2, "head", "train", 0.9, 0.4),
        (2, "head", "validation", 0.88, 0.5), (3, "blocks", "train", 0.5, 3.0), (3, "blocks", "validation", 0.6, 1.0),
        (4, "blocks", "train", 0.99, 0.1), (4, "blocks", "validation", 0.8, 0.6),
    )  # fmt: skip
    told = advise(_config(), rows, num_classes=10)
    assert [sentence.partition(":")[0] for sentence in told] == ["blocks"] * 3
    assert "above log(classes)" in told[0] and "fell by 28.0 points" in told[1] and "19 points above" in told[2]
    assert advise(_config(), rows[:4], num_classes=10) == []


def test_an_old_run_dir_is_read(tmp_path):
    """Without attempts, durations and figures that later versions wrote."""
    raw = to_json(_config())
    del raw["calibrate"], raw["report"], raw["phases"][0]["sam"]
    summary = {"phases": [{"name": "head", "train": {"accuracy": 0.5}}, {"name": "blocks", "test": {"accuracy": 0.6}}],
               "class_names": ["a", "b"], "images": {"train": 4, "validation": 2}, "steps": 3, "weights_source": None,
               "provenance": {"versions": {"jax": "0.4"}, "machine": {"cpus": 2}}}  # fmt: skip
    run = tmp_path / "a run"
    (run / "weights").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(raw))
    with pytest.raises(RunError, match="not finished"):
        read_story(files.as_path(run))
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "weights" / "metadata.json").write_text("{}")
    story = read_story(files.as_path(run))
    head, blocks = story.phases
    assert head.settings["augmentation"] == "none" and blocks.settings["augmentation"] == "zoom 1–1.35"
    assert [row["unit"] for row in head.units if row["trained"]] == ["classifier"]
    assert [row["factor"] for row in blocks.units if row["trained"]] == [0.25, 0.5, 1]
    assert sum(row["trained"] for row in head.units) == 2 * 1280 + 2
    told = dict(story.provenance)
    assert told["weights began as"] == "random values" and told["attempt: versions"] == "jax 0.4"
    commands = [command for _, command in story.commands]
    assert "--split=validation" in commands[1] and all(f"'{run}" in command for command in commands)
    assert "weights/metadata.json" in story.files and "curves.png" not in story.files


@pytest.fixture
def finished(tmp_path):
    """The run dir of a run of two phases and four epochs, whose second one was the best."""
    run = tmp_path / "mine"
    rows = _rows(
        *((step, name, "validation", accuracy, 0.5)
          for step, name, accuracy in ((1, "head", 0.7), (2, "head", 0.842), (3, "blocks", 0.9), (4, "blocks", 0.825)))
    )  # fmt: skip
    for step in (2, 4):  # that of step 3 was not kept
        (run / "checkpoints" / str(step)).mkdir(parents=True)
    (run / "weights").mkdir()
    (run / "weights" / "metadata.json").write_text("{}")
    (run / "config.json").write_text(json.dumps(to_json(_config())))
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    summary = {"phases": [], "class_names": ["a", "b"], "images": {"train": 4, "test": 2}, "steps": 4}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_an_earlier_checkpoint_that_was_better_is_named_with_the_command_that_exports_it(finished):
    story = read_story(files.as_path(finished))
    what, command = next(one for one in story.commands if "best" in one[0])
    assert "the best validation accuracy was 84.2 %" in story.advice[-1]
    assert "the best validation accuracy was 84.2 % after epoch 2, the last 82.5 %" in what
    assert command.endswith(f"-m effnet_jax.export {finished} {finished}-best --step best")
    (finished / "checkpoints" / "2").rmdir()
    assert not [what for what, _ in read_story(files.as_path(finished)).commands if "best" in what]


@pytest.mark.parametrize(
    ("source", "words"),
    [(None, "random values"), ({}, "w"), ({"sha256": "ab"}, "w"), ({"name": "lite0", "sha256": "ab"}, "lite0")],
)
def test_weights_that_say_nothing_of_their_origin_were_not_random(finished, source, words):
    summary = json.loads((finished / "summary.json").read_text())
    (finished / "summary.json").write_text(json.dumps({**summary, "weights_source": source}))
    assert dict(read_story(files.as_path(finished)).provenance)["weights began as"] == words


def test_a_run_dir_that_is_the_current_folder_has_a_name(finished, monkeypatch):
    monkeypatch.chdir(finished)
    story = read_story(files.as_path("."))
    assert story.name == "mine" and dict(story.provenance)["run dir"] == str(finished)
