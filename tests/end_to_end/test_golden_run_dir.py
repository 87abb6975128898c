"""A run dir of the first format, killed in its second phase, goes on with today's code as its own would have.

tests/golden/README.md says how it was made. A change of the code that cannot read it, or that goes on with other
numbers, breaks the runs of everybody who updates the package.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from effnet_jax.export import export
from effnet_jax.train.loop import train
from effnet_jax.weights.store import read_weights
from tests import runs

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """The run dir, beside its data and weights, in the current folder."""
    with tarfile.open(GOLDEN / "run_dir_v1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_it_resumes_and_ends_as_it_would_have(killed, capsys):
    expected = json.loads((GOLDEN / "run_dir_v1_expected.json").read_text())
    export(killed, "halfway", step=9)  # its checkpoints, too, can be exported
    assert read_weights("halfway")[1].class_names == ("cat", "dog")

    config = json.loads((killed / "config.json").read_text())
    summary = train(config, killed, devices=jax.devices()[:1])
    assert "resumed after step 10" in capsys.readouterr().out

    rows = [runs.timeless(json.loads(line)) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(expected["rows"])
    for row, wanted in zip(rows, expected["rows"], strict=True):
        assert row.keys() == wanted.keys() and (row["phase"], row["split"]) == (wanted["phase"], wanted["split"])
        for key in row.keys() - {"phase", "split"}:
            assert row[key] == pytest.approx(wanted[key], rel=1e-5, abs=1e-7), (key, wanted)
    assert runs.timeless_points(runs.board(killed)) == runs.board_of(rows)
    for split in ("validation", "validation_ema", "test", "test_ema"):
        assert summary[split] == pytest.approx(expected["summary"][split], rel=1e-5)

    weights, averages = (
        traverse_util.flatten_dict(read_weights(killed / name)[0], sep="/") for name in ("weights", "weights_ema")
    )
    assert weights.keys() == expected["leaves"].keys()
    for path, sums in expected["leaves"].items():
        for leaf, (total, size) in ((weights[path], sums[:2]), (averages[path], sums[2:])):
            assert np.sum(leaf, dtype=np.float64) == pytest.approx(total, abs=1e-5 * size), path
            assert np.abs(leaf).sum(dtype=np.float64) == pytest.approx(size, rel=1e-5), path
