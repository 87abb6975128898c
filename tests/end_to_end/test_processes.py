"""A run of two processes, as on two hosts, is the run of one."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests import synthetic

RUN = """
import sys
import jax
number, count, port, images, weights, workdir, mode = sys.argv[1:]
if count != "1":
    jax.distributed.initialize(f"localhost:{port}", int(count), int(number))
from effnet_jax.train.config import default_config, phase
from effnet_jax.train.loop import train
config = default_config()
config.variant, config.weights, config.resolution = "lite0", weights, 32
config.batch_size, config.log_every, config.ema = 8, 1, 0.9
config.data.name, config.augment.flip, config.partition.mode = images, True, mode
config.phases = (
    phase(name="head", epochs=1, learning_rate=0.01),
    phase(name="top", train=("top", "classifier"), epochs=1, learning_rate=1e-3),
)
train(config, workdir)
"""


@pytest.mark.slow
def test_two_processes_get_the_figures_of_one(image_folder, tmp_path):
    images = image_folder(per_class={"train": 8, "validation": 3, "test": 3})
    weights = tmp_path / "weights"
    synthetic.write_weights_dir(weights)
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}

    def figures(name, count, mode):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        arguments = [count, port, images, weights, tmp_path / name, mode]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RUN, str(number), *map(str, arguments)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for number in range(count)
        ]  # fmt: skip
        try:
            for process in processes:
                shown, _ = process.communicate(timeout=600)
                assert process.returncode == 0, shown
        finally:
            for process in processes:
                process.kill()
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert (tmp_path / name / "weights_ema").is_dir()
        return [(row["step"], row["split"], row["loss"], row["accuracy"]) for row in rows]

    one = figures("one", 1, "pjit")
    assert len(one) == 14
    for mode in ("pjit", "pmap"):
        for row, expected in zip(figures(mode, 2, mode), one, strict=True):
            assert row[:2] == expected[:2]
            assert row[2:] == pytest.approx(expected[2:], rel=1e-5)
