"""Makes `run_dir_v1.tar.xz`, a run that was killed, and `run_dir_v1_expected.json`, what it gives when it is not.

They hold later code to this promise: a run dir of commit 0f241b4 goes on, and comes to the same figures. So it is run
with the code of that commit (`summary.provenance.commit` tells), wherever this file lies:

    git worktree add /tmp/base 0f241b4
    PYTHONPATH=/tmp/base python tests/golden/make_run_dir.py

The archive holds `data.npz`, `lite0/` (weights) and `run/`, whose config names the other two by relative paths: in a
folder with these three, `train(json.loads(Path("run/config.json").read_text()), "run")` goes on. The figures are the
same each time, on one machine; the archive's size is not (140 to 200 KB), by how orbax's threads take turns.
"""

import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from flax import traverse_util

from effnet_jax.model import variants
from effnet_jax.train import config, loop, report
from effnet_jax.weights import metadata, store
from effnet_jax.weights.layouts import LAYOUTS
from tests import synthetic

GOLDEN = Path(__file__).resolve().parent
CLASSES = {"cat": (176, 112, 64), "dog": (96, 112, 176)}  # and their colours
SIZES = {"train": 24, "validation": 8, "test": 8}
WIDTH = 8  # different channels of a layer, and classes of the weights
SEED = 1677  # of the weights: most features are 0 and need no room, and the others tell the colours apart


def make_config():
    """Two phases, 3 steps an epoch. The validation loss is higher after step 12 than after 9: the plateau's scale falls
    by what a checkpoint between them holds.
    """
    result = config.default_config()
    result.variant = "lite0"
    result.weights = "lite0"
    result.resolution = 32
    result.seed = 1
    result.batch_size = 8
    result.log_every = 1
    result.ema = 0.9
    result.data.name = "data.npz"
    result.augment.flip = True
    result.checkpoint.keep = 2
    result.phases = (
        config.phase(name="head", epochs=2, optimizer="adam", learning_rate=5e-4),
        config.phase(
            name="early", train=("stem", "classifier"), epochs=3, optimizer="adam", keep_optimizer=True,
            batch_norm="train", schedule="plateau", plateau_patience=1, warmup=0.4, learning_rate=5e-4,
        ),
    )  # fmt: skip
    return result


def write_data(path):
    """Images of 16 squares, all near the colour of their class."""
    arrays = {"class_names": np.array(list(CLASSES))}
    for split, count in SIZES.items():
        labels = np.arange(count) % 2
        noise = synthetic.normal(split, 0, (count, 1, 1, 3)) + synthetic.normal(split, 1, (count, 4, 4, 3))
        squares = np.array(list(CLASSES.values()))[labels][:, None, None] + 16 * np.round(2 * noise)
        pixels = np.clip(squares, 0, 255).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
        arrays |= {f"x_{split}": pixels, f"y_{split}": labels}
    np.savez(path, **arrays)


def write_weights_dir(path):
    """Weights that compress well: synthetic ones of a network of 8 channels, rounded, and each channel many times."""
    variant = variants.VARIANTS["lite0"]
    damped = synthetic.damped_gammas(variant)
    flat = {}
    for row in LAYOUTS["tf1"].table(variant, WIDTH):
        small = tuple(min(size, WIDTH) for size in row.shape)
        copies = [size // part for size, part in zip(row.shape, small, strict=True)]
        value = np.round(16 * synthetic.tf_value(row.name, small, SEED, row.tensor.path in damped)) / 16
        if row.name.endswith("/kernel"):  # sums over its inputs, which are there many times
            value = value / copies[-2]
        flat[tuple(row.tensor.path.split("/"))] = row.decode(np.tile(value, copies).astype(np.float32))
    described = metadata.Metadata("lite0", "lite", "lite", "pad32", 224, WIDTH)
    store.write_weights(path, traverse_util.unflatten_dict(flat), described)


def attempt(workdir, step="0", number="0"):
    """Trains, and sends itself a signal when it has logged a step."""
    record = report.Report.record

    def patched(self, **row):
        record(self, **row)
        if row["split"] == "step" and row["step"] == int(step):
            os.kill(os.getpid(), int(number))

    with mock.patch.object(report.Report, "record", patched):
        loop.train(make_config(), workdir)


def start(folder, *arguments):
    """Makes an attempt in a process of its own, on one CPU device. Returns its exit status."""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment).returncode


def expected(run):
    """What a whole run gave: its summary, its rows, and of each leaf the sum and the sum of the absolute values, for
    the weights and for their averages.
    """
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    leaves = {}
    for name in ("weights", "weights_ema"):
        for path, leaf in traverse_util.flatten_dict(store.read_weights(run / name)[0], sep="/").items():
            values = leaf.astype(np.float64)
            leaves.setdefault(path, []).extend([values.sum(), np.abs(values).sum()])
    return {
        "summary": {key: value for key, value in summary.items() if key != "seconds"},
        "rows": [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows],
        "leaves": leaves,
    }


def pack(folder, path):
    def nobodys(info):
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(path, "w:xz", preset=9 | lzma.PRESET_EXTREME) as archive:
        for name in ("data.npz", "lite0", "run"):
            archive.add(folder / name, name, filter=nobodys)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data.npz")
        write_weights_dir(folder / "lite0")
        assert start(folder, "whole") == 0
        # Asked to stop when it has logged step 9, the end of an epoch, the run saves after step 10, inside of the next
        # one. It goes on from there, and is killed when it has logged step 11.
        assert start(folder, "run", 9, signal.SIGTERM.value) == -signal.SIGINT  # a KeyboardInterrupt
        assert start(folder, "run", 11, signal.SIGKILL.value) == -signal.SIGKILL
        assert {path.name for path in (folder / "run" / "checkpoints").iterdir()} == {"9", "10"}
        pack(folder, GOLDEN / "run_dir_v1.tar.xz")
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in expected(folder / "whole").items()]
        (GOLDEN / "run_dir_v1_expected.json").write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        attempt(*sys.argv[1:])
    else:
        main()
