"""The wheel in an environment of its own, away from the checkout: its commands, recipes and a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import synthetic

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_an_installed_package_needs_no_checkout(tmp_path, image_folder):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("effnet_jax-*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    bin_ = tmp_path / "env" / "bin"
    install = [bin_ / "python", *pip[1:], "install", "--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True)
    synthetic.write_weights_dir(tmp_path / "lite0")
    images = image_folder(per_class={"train": 32, "validation": 8, "test": 8}, vary=False)
    away = tmp_path / "away"
    away.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def effnet(*arguments):
        command = [bin_ / "effnet", *map(str, arguments)]
        done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    data = [f"--config.data.name={images}", f"--config.weights={tmp_path / 'lite0'}"]
    assert "test accuracy" in effnet("train", "--config=quickstart:smoke", "--workdir=run", *data)
    assert "%" in effnet("predict", "run/weights", next(images.glob("test/*/*.jpg")))
    effnet("export", "run", "latest")
    assert "noisy_student_b1" in effnet("weights", "list")
    assert "block7a" in effnet("summary", "b0")
    assert "wrote" in effnet("prepare", images, "prepared") and (away / "prepared").is_dir()
    for command in ("port", "preview", "tpu"):
        assert "usage" in effnet(command, "--help")
    heavy = {"h5py", "safetensors", "datasets", "huggingface_hub", "tensorflow", "gcsfs", "flatbuffers"}
    listed = subprocess.run([bin_ / "python", "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not heavy & {line.split()[0] for line in listed.splitlines()[2:] if line}
