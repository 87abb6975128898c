"""A run writes its report, and the command writes it anew."""

import re
import shutil
import sys

import jax
import pytest

from effnet_jax import __main__ as effnet
from effnet_jax.errors import ConfigError, DataError, RunError
from effnet_jax.report.__main__ import main, make_report
from effnet_jax.train.config import default_config, phase
from effnet_jax.train.loop import train
from tests import synthetic


def _config(weights, images):
    synthetic.write_weights_dir(weights)
    config = default_config()
    config.variant, config.weights, config.resolution, config.batch_size = "lite0", str(weights), 32, 8
    config.data.name = str(images)
    config.augment.shift = 0.25
    config.phases = (phase(name="head", steps=2),)
    return config


def _part(page, name):
    return re.sub(r"<[^>]+>", " ", page.partition(f'id="{name}"')[2].partition("</section>")[0])


def test_a_run_writes_it_and_the_command_writes_it_anew(image_folder, tmp_path, monkeypatch, capsys):
    images = image_folder(per_class={"train": 12, "validation": 4, "test": 6}, size=(60, 50))
    folder, config = tmp_path / "a run", _config(tmp_path / "lite0", images)
    train(config, folder, devices=jax.devices()[:1])
    said = capsys.readouterr().out
    assert f"report: {folder / 'report.html'}" in said and "warning: report" not in said
    first = (folder / "report.html").read_text("utf-8")
    assert "12 test images of 2 classes" in first and "phase head, step 0" in first and "shift 0.25" in first
    assert "2,562 trained" in _part(first, "phases")
    assert f"&#39;{folder}/weights&#39; --top 3" in first

    (folder / "evaluation.json").unlink()  # as an older version left it
    (folder / "report.html").unlink()
    monkeypatch.setattr(sys, "argv", ["effnet", "report", str(folder)])
    assert effnet.main() == 0
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().out
    again = (folder / "report.html").read_text("utf-8")
    for name in ("phases", "curves", "confusions", "mistakes", "seen"):
        assert _part(first, name) == _part(again, name), name

    # Started again it says where the page is, or how it is made.
    train(config, folder, devices=jax.devices()[:1])
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    page = (folder / "report.html").rename(tmp_path / "page.html")
    train(config, folder, devices=jax.devices()[:1])
    assert "It has no report. This makes it: " in (said := capsys.readouterr().out) and "-m effnet_jax.report" in said
    page.rename(folder / "report.html")

    # The data has moved, and the page lies elsewhere.
    moved = images.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"where it has moved, give --config\.data\.name=PLACE"):
        make_report(str(folder))
    gone = (moved / "train" / "cat" / "000.jpg").rename(tmp_path / "000.jpg")
    monkeypatch.setattr(
        sys, "argv", ["report", str(folder), f"--config.data.name={moved}", f"--out={tmp_path}/x/p.html"]
    )
    assert main() == 0
    elsewhere = (tmp_path / "x" / "p.html").read_text("utf-8")
    assert _part(elsewhere, "mistakes") == _part(first, "mistakes") and 'href="summary.json"' not in elsewhere
    told = "train: 24 images before, 23 now: gone: train/cat/000.jpg"
    assert f"warning: the data has changed since {folder} was trained:\n  {told}" in capsys.readouterr().err
    assert told in _part(elsewhere, "provenance") and "data since the run" not in again
    gone.rename(moved / "train" / "cat" / "000.jpg")
    with pytest.raises(ConfigError, match=r"did you mean 'data\.name'"):
        make_report(str(folder), ["--config.data.nam=x"])

    # No page is no reason to lose a run.
    moved.rename(images)
    (folder / "summary.json").unlink()
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    summary = train(config, folder, devices=jax.devices()[:1])
    said = capsys.readouterr().out
    assert summary["test"]["count"] == 12 and (folder / "summary.json").exists()
    assert f"report: {folder}" not in said
    assert "warning: report.html was not written" in said and "-m effnet_jax.report" in said

    shutil.rmtree(folder / "report.html")
    (folder / "summary.json").unlink()
    with pytest.raises(RunError, match="is not finished: the command that began it goes on with it"):
        make_report(str(folder))


def test_no_run_dir(tmp_path):
    with pytest.raises(RunError, match="is no run dir"):
        make_report(str(tmp_path))
    with pytest.raises(RunError, match="is no run dir"):
        make_report(str(tmp_path / "absent"))
