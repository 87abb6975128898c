"""Images that a run goes on without."""

import json
import types

from effnet_jax.train.rundir.skipped import SKIPPED, SkippedImages


def entry(name):
    return {"id": name, "error": f"{name} is damaged"}


def test_images_are_listed_at_once_and_told_once(tmp_path):
    said = []
    train, test = types.SimpleNamespace(bad=[]), types.SimpleNamespace(bad=[entry("t")])
    sources = {"train": train, "test": test}
    skipped = SkippedImages(tmp_path, said.append)
    skipped.update(sources)
    assert json.loads((tmp_path / SKIPPED).read_text()) == {"test": [entry("t")]}
    train.bad += [entry("a"), entry("b")]
    skipped.update(sources)
    train.bad.append(entry("c"))
    skipped.update(sources)
    skipped.update(sources)
    assert [line.split(" (all")[0] for line in said] == [
        "warning: skipped in test: t is damaged",
        "warning: skipped in train: a is damaged",
    ]
    assert str(skipped) == "1 of test, 3 of train"


def test_a_resumed_run_keeps_the_list(tmp_path):
    source = types.SimpleNamespace(bad=[entry("a")])
    SkippedImages(tmp_path, print).update({"train": source})
    said = []
    resumed = SkippedImages(tmp_path, said.append)
    resumed.update({"train": types.SimpleNamespace(bad=[entry("b"), entry("a")])})
    assert resumed.images == {"train": [entry("a"), entry("b")]} == json.loads((tmp_path / SKIPPED).read_text())
    assert not said


def test_nothing_is_written_where_nothing_is_skipped(tmp_path):
    SkippedImages(tmp_path, print).update({"train": types.SimpleNamespace(bad=[])})
    assert not list(tmp_path.iterdir())
