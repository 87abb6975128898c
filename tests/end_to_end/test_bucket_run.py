"""A run dir and weights dirs in a bucket: an emulator of Google Cloud Storage on this machine."""

import pytest

from effnet_jax import files
from effnet_jax.export import export
from effnet_jax.predict import load_classifier
from effnet_jax.report.__main__ import make_report
from effnet_jax.train.rundir.checkpoints import list_steps
from effnet_jax.train.rundir.log import read_rows
from tests import runs
from tests.bucket import bucket_fixture  # noqa: F401


def with_cache_dir(recipe):
    """Adds a folder for disk caches beside the bucket."""
    line = f"    config.cache_dir = {str(recipe.parent / 'caches')!r}\n"
    recipe.write_text(recipe.read_text().replace("    return config", f"{line}    return config"))


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_a_disk(recipe, bucket, tmp_path, monkeypatch):
    runs.run(recipe, tmp_path / "disk")
    wanted = runs.outcome(tmp_path / "disk")
    with_cache_dir(recipe)
    workdir = f"{bucket}/run"

    started = runs.start(recipe, workdir)
    for one in started:  # killed once, stopped by a signal once
        runs.wait_for(one, "top 1/3")
    runs.kill(started)
    started = runs.start(recipe, workdir)
    runs.wait_for(started[0], "phase blocks")
    started[0].process.terminate()
    assert runs.finish(started) == [143]
    runs.run(recipe, workdir)

    assert [runs.timeless(row) for row in read_rows(workdir)] == wanted["rows"]
    summary = files.read_json(files.as_path(workdir) / "summary.json")
    assert {key: value for key, value in summary.items() if key not in runs.OF_THE_ATTEMPT} == wanted["summary"]
    assert list(files.visible(recipe.parent / "caches")) == []
    best = export(workdir, f"{bucket}/best", step="best", ema=True)
    assert best.ema and best.class_names == ("cat", "dog")
    classify = load_classifier(f"{bucket}/best")
    image = next((tmp_path / "images" / "test" / "cat").iterdir())
    assert classify([image]).shape == (1, 2)
    written = {"weights", "weights_ema", "curves.png", "summary.json", "evaluation.json", "report.html"}
    assert written <= set(files.visible(workdir))
    page = (files.as_path(workdir) / "report.html").read_text()
    assert "24 test images of 2 classes" in page and "24 test images of 2 classes" in make_report(workdir).decode()
    assert f"export {workdir}/weights run-timm --format=timm" in page  # other programs' formats need a disk
    assert list_steps(files.as_path(workdir))


def test_what_a_bucket_cannot_do_is_told_at_once(recipe, bucket, tmp_path):
    def told(workdir):
        started = runs.start(recipe, workdir)
        assert runs.finish(started, timeout=120) == [2]
        return started[0].text()

    assert "is a bucket, and a trunk cache on disk needs a local folder: set cache_dir" in told(f"{bucket}/run")
    assert files.visible(bucket) == []
    assert "s3:// is not supported: use a local folder, or gs://" in told("s3://bucket/run")
