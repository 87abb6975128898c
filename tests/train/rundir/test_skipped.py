"""Images that a run goes on without."""

import json

from effnet_jax.train.rundir.skipped import SKIPPED, SkippedImages


def entry(name):
    return {"id": name, "error": f"{name} is damaged"}


def test_images_are_listed_at_once_and_told_once(tmp_path):
    said = []
    skipped = SkippedImages(tmp_path, said.append)
    train = skipped.met["train"]
    skipped.met["test"].append(entry("t"))
    skipped.update()
    assert json.loads((tmp_path / SKIPPED).read_text()) == {"test": [entry("t")]}
    train += [entry("a"), entry("b")]
    skipped.update()
    train.append(entry("c"))
    skipped.update()
    skipped.update()
    assert [line.split(" (all")[0] for line in said] == [
        "warning: skipped in test: t is damaged",
        "warning: skipped in train: a is damaged",
    ]
    assert str(skipped) == "1 of test, 3 of train"


def test_a_resumed_run_keeps_the_list(tmp_path):
    first = SkippedImages(tmp_path, print)
    first.met["train"].append(entry("a"))
    first.update()
    said = []
    resumed = SkippedImages(tmp_path, said.append)
    resumed.met["train"] += [entry("b"), entry("a")]
    resumed.update()
    assert resumed.images == {"train": [entry("a"), entry("b")]} == json.loads((tmp_path / SKIPPED).read_text())
    assert not said


def test_nothing_is_written_where_nothing_is_skipped(tmp_path):
    skipped = SkippedImages(tmp_path, print)
    assert skipped.met["train"] == []
    skipped.update()
    assert not list(tmp_path.iterdir())
