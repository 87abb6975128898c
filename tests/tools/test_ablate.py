"""The ablations' tool: its arms, its seam, and the table and picture that it draws from runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from effnet_jax.data.prepare import prepare_files
from effnet_jax.errors import RunError
from effnet_jax.train import phases
from effnet_jax.train.config import check_config, to_json
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import write_weights
from tests import synthetic

TOOL = Path(__file__).resolve().parents[2] / "tools" / "ablate.py"
METADATA = Metadata("b0", "imagenet", "imagenet", "pad32", 224, 1000)


@pytest.fixture
def ablate(monkeypatch):
    spec = importlib.util.spec_from_file_location("ablate", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablate", module)  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


def fake_run(ablate, arm, seed, args):
    """Writes what a finished run leaves, with accuracies that tell arm, seed and epoch apart."""
    folder = ablate.run_folder(args.out, arm, seed)
    folder.mkdir(parents=True)
    config = check_config(ablate.make_config(ablate.ARMS[arm], seed, args))
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    (folder / "summary.json").write_text(json.dumps({"class_names": list(map(str, range(100))), "validation": {}}))
    rows, epoch = [], 0
    for keys in config.phases:
        for _ in range(round(keys.epochs)):
            epoch += 1
            accuracy = 0.04 * epoch + 0.01 * list(ablate.ARMS).index(arm) + 0.005 * seed
            place = {"phase": keys.name, "epoch": epoch}
            rows.append({**place, "split": "train", "loss": 4.0 - 0.1 * epoch, "accuracy": 0.5})
            rows.append({**place, "split": "validation", "loss": 3.0, "accuracy": accuracy})
            rows.append({**place, "split": "validation_ema", "loss": 3.0, "accuracy": accuracy + 0.02})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path(f"{folder}.log").write_text("epoch\nadvice: slower\n" if arm == "rmsprop" else "epoch\n")


def test_table_and_picture_come_from_the_runs_and_only_what_is_missing_is_run(ablate, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "read_metadata", lambda path: METADATA)
    monkeypatch.setattr(sys, "argv", ["ablate.py", str(tmp_path), "--weights", "b0", "--data-dir", "data"])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    missing = {("split-blocks", 1), ("batch-128", 0), ("batch-128", 1), ("batch-128", 2)}
    args = ablate.parse_arguments()
    for arm in ablate.ARMS:
        for seed in range(3):
            if (arm, seed) not in missing:
                fake_run(ablate, arm, seed, args)

    trained = {}

    def diverge(config, workdir):
        trained[workdir.parent.name, config.seed] = phases.make_plan(config, config.phases[-1])
        print("not for the terminal")
        raise RunError("the loss is not finite")

    monkeypatch.setattr(ablate, "train", diverge)
    ablate.main()
    shown = capsys.readouterr().out
    assert set(trained) == missing
    assert "27/27" in shown and "not for the terminal" not in shown

    # The package's plans stay whole: only the split arm had one of the tool's.
    assert {arm for (arm, _), plan in trained.items() if isinstance(plan, ablate.SplitBlocks)} == {"split-blocks"}
    split = trained["split-blocks", 1]
    assert not split.is_trained(("block4a", "expand_conv", "kernel"))
    assert not split.is_trained(("block7a", "project_bn", "scale"))
    assert not split.is_trained(("block3b", "project_conv", "kernel"))
    assert split.is_trained(("block4a", "project_conv", "kernel")) and split.is_trained(("top", "conv", "kernel"))

    lines = (tmp_path / "ablations.md").read_text().splitlines()
    cells = {tuple(line.split(" | "))[0]: [cell.strip(" |") for cell in line.split(" | ")[1:]] for line in lines}
    assert cells["| block4 to the output, whole"][1:] == ["20.5 ± 0.5", "", "12.5 ± 0.5", "3.70 ± 0.00", "3"]
    assert cells["| trained with the batch"][1:3] == ["21.5 ± 0.5", "+1.0 ± 0.0"]
    assert cells["| EMA"][2] == "+2.0 ± 0.0"
    assert cells["| classifier, block7, block5, block4"][3] == "19.5 ± 0.5"  # its third epoch is the first of block7
    assert cells["| block4 to the output, second halves"][5] == "2"  # one of three seeds stopped
    assert cells["| 128"][1] == "stopped"
    assert "- rmsprop, seed 2, advice: slower" in lines
    assert "- batch-128, seed 0, stopped: the loss is not finite" in lines
    assert any("log(100) = 4.605" in line for line in lines)

    # Whole and split blocks are compared at about the same number of trained parameters.
    found = json.loads((tmp_path / "ablations.json").read_text())["ablations"]["blocks"]["rows"]
    everything, half, same = (row["trained"] for row in found)
    assert half < 0.7 * everything and abs(same - half) < 0.1 * half
    assert found[0]["end"] == {"0": pytest.approx(20.0), "1": pytest.approx(20.5), "2": pytest.approx(21.0)}
    assert len((tmp_path / "ablations.png").read_bytes()) > 50_000


@pytest.mark.slow
def test_a_smoke_run_from_end_to_end(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "cifar.npz", x_train=images, y_train=np.arange(96) % 4)
    prepare_files(str(tmp_path / "cifar.npz"), str(tmp_path / "data" / "cifar100"))
    write_weights(tmp_path / "b0", synthetic.variables("b0"), METADATA)
    out = tmp_path / "out"
    command = [sys.executable, str(TOOL), str(out), "--smoke", "--only", "blocks", "--weights", str(tmp_path / "b0")]
    command += ["--data-dir", str(tmp_path / "data")]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(TOOL.parents[1])}
    for again in (False, True):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("is finished") == (3 if again else 0)
    rows = json.loads((out / "ablations.json").read_text())["ablations"]["blocks"]["rows"]
    assert [len(row["end"]) for row in rows] == [1, 1, 1]
    assert (out / "ablations.png").exists() and "log(4) = 1.386" in (out / "ablations.md").read_text()

    # The split arm's run kept the first halves of its blocks to the bit, and trained the second ones.
    from effnet_jax.weights.store import read_metadata

    before, after = (read_metadata(path).checksums for path in (tmp_path / "b0", out / "split-blocks/seed0/weights"))
    for block in ("block4a", "block7a"):
        for layer, moved in (("expand_conv", False), ("depthwise_conv", False), ("project_conv", True)):
            path = f"params/{block}/{layer}/kernel"
            assert (before[path] != after[path]) == moved, path
