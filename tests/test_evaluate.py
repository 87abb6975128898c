"""Weights measured on labelled images, from the command line, against the classifier and scikit-learn."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from effnet_jax import evaluate, load_classifier
from effnet_jax.errors import ConfigError, DataError, EffnetError, PathError, WeightsError
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import write_weights
from tests import synthetic

CLASSES = ("cat", "dog", "emu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate") / "lite0"
    metadata = Metadata("lite0", "lite", "lite", "frac", 48, 3, CLASSES, temperature=1.5)
    write_weights(path, synthetic.variables("lite0", num_classes=3), metadata)
    return path


@pytest.fixture
def images(image_folder):
    return image_folder(classes=CLASSES, per_class={"test": 7})


def _run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    assert evaluate.main() == 0
    return capsys.readouterr().out


def test_figures_files_and_pictures(weights, images, tmp_path, monkeypatch, capsys):
    out = _run(
        monkeypatch, capsys, weights, f"--config.data.name={images}", "--batch_size=8", f"--json={tmp_path / 'f.json'}",
        f"--csv={tmp_path / 'rows.csv'}", f"--pictures={tmp_path / 'pictures'}",
    )  # fmt: skip
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    paths = [Path(row["image"]) for row in rows]
    assert sorted(paths) == sorted((images / "test").rglob("*.jpg"))
    labels = [CLASSES.index(path.parent.name) for path in paths]
    shares = load_classifier(weights)(paths)
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["count"] == 21 and found["temperature"] == 1.5
    assert found["top1"] == pytest.approx(metrics.accuracy_score(labels, shares.argmax(1)), abs=1e-6)
    assert found["balanced"] == pytest.approx(metrics.balanced_accuracy_score(labels, shares.argmax(1)), abs=1e-6)
    assert found["loss"] == pytest.approx(metrics.log_loss(labels, shares, labels=[0, 1, 2]), abs=1e-4)
    assert [row["class"] for row in found["classes"]] == list(CLASSES)
    told = [[float(row["class_probability"]), float(row["probability1"])] for row in rows]
    wanted = np.stack([shares[np.arange(21), labels], shares.max(1)], 1)
    np.testing.assert_allclose(told, wanted, atol=1e-4)
    assert [row["answer1"] for row in rows] == [CLASSES[index] for index in shares.argmax(1)]
    assert all(path.stat().st_size > 5000 for path in (tmp_path / "pictures").glob("*.png"))
    assert "21 images of 3 classes" in out and "without the temperature 1.5" in out


def test_a_data_set_of_some_of_the_classes_in_any_order(weights, images, monkeypatch, capsys):
    shutil.rmtree(images / "test" / "cat")
    out = _run(monkeypatch, capsys, weights, f"--config.data.name={images}")
    assert "14 images of 2 classes" in out


def test_a_damaged_image_is_an_error_or_is_skipped(weights, images, monkeypatch, capsys):
    broken = images / "test" / "dog" / "003.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"003\.jpg"):
        _run(monkeypatch, capsys, weights, f"--config.data.name={images}")
    out = _run(monkeypatch, capsys, weights, f"--config.data.name={images}", "--config.data.on_bad_image=skip")
    assert "20 images" in out and "skipped 1 images" in out


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--config.data.nam=x"], ConfigError, "did you mean 'data.name'"),
        (["--splt=test"], ConfigError, "no such flag or key"),
        (["--config.resolution=64"], ConfigError, r"only --config\.data\.KEY=VALUE can be given here"),
        (["--config.data.name="], DataError, "data.name is empty"),
        (
            ["--config.data.name=x", "--config.data.test="],
            DataError,
            "no test split, .*--split=validation or",
        ),
        (["--dtype=bf16"], ConfigError, "did you mean"),
        (["--config.data.name=/nowhere/at/all"], DataError, "no such file or folder.*--config.data.name=PLACE"),
    ],
)
def test_mistakes(weights, arguments, error, words, monkeypatch, capsys):
    with pytest.raises(error, match=words):
        _run(monkeypatch, capsys, weights, *arguments)


def test_weights_without_a_classifier_and_data_of_other_classes(weights, image_folder, tmp_path, monkeypatch, capsys):
    metadata = Metadata("lite0", "lite", "lite", "frac", 48, 0)
    values = synthetic.variables("lite0", num_classes=3)
    del values["params"]["classifier"]
    write_weights(tmp_path / "notop", values, metadata)
    with pytest.raises(WeightsError, match="no classifier"):
        _run(monkeypatch, capsys, tmp_path / "notop", "--config.data.name=x")
    other = image_folder(classes=("cat", "dgo"), per_class={"test": 1}, name="other")
    with pytest.raises(DataError, match="'dgo'.*near 'dgo': 'dog'"):
        _run(monkeypatch, capsys, weights, f"--config.data.name={other}")


def test_an_output_that_cannot_be_written_is_told_before_the_evaluation(weights, images, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    for flag, words in (("json", "is a folder"), ("csv", r"file cannot be made \(File exists\)")):
        place = tmp_path if flag == "json" else tmp_path / "file" / "rows.csv"
        with pytest.raises(PathError, match=words):
            _run(monkeypatch, capsys, weights, f"--config.data.name={images}", f"--{flag}={place}")
        assert "images of" not in capsys.readouterr().out
    _run(monkeypatch, capsys, weights, f"--config.data.name={images}", f"--json={tmp_path}/new/folder/f.json")
    assert json.loads((tmp_path / "new" / "folder" / "f.json").read_text())["count"] == 21


def test_what_could_not_be_read_is_counted(weights, image_folder, monkeypatch, capsys):
    """Small images are decoded when the set is opened, photographs when they are asked for."""
    small = image_folder(classes=CLASSES, per_class={"test": 2}, size=(32, 32), vary=False, name="small")
    flags = [f"--config.data.name={small}", "--config.data.on_bad_image=skip"]
    files = sorted((small / "test").rglob("*.jpg"))
    files[0].write_bytes(b"no image")
    assert "skipped 1 images that cannot be read" in _run(monkeypatch, capsys, weights, *flags)
    for file in files:
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image of .* can be read, so that there is nothing to measure: .*jpg"):
        _run(monkeypatch, capsys, weights, *flags)


def test_a_name_of_the_hub_is_no_path():
    assert evaluate.find_target("hf://timm/tf_efficientnet_b0.ns_jft_in1k")[1] is None


def test_weights_whose_answers_are_no_numbers(images, tmp_path, monkeypatch, capsys):
    values = synthetic.variables("lite0", num_classes=3)
    values["params"]["classifier"]["bias"][1] = np.nan
    write_weights(tmp_path / "broken", values, Metadata("lite0", "lite", "lite", "frac", 48, 3, CLASSES))
    with pytest.raises(WeightsError, match=r"answers to 21 of 21 images of .* are no numbers, to .*jpg first"):
        _run(monkeypatch, capsys, tmp_path / "broken", f"--config.data.name={images}")


def test_an_unfinished_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(EffnetError, match=r"not finished: take the weights of its newest checkpoint"):
        _run(monkeypatch, capsys, tmp_path / "run")
