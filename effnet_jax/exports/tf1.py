"""A TensorFlow 1 checkpoint as the original code writes and restores it, each variable with its moving average."""

from pathlib import Path

from effnet_jax import files
from effnet_jax.exports.base import Weights
from effnet_jax.weights.bundle_writer import write_bundle
from effnet_jax.weights.layouts.tf1 import EMA_ENDING

PREFIX = "model.ckpt"


def write(weights: Weights, out: Path) -> None:
    """Writes the checkpoint's files into a folder."""
    model = f"efficientnet-{weights.variant.name}/"
    arrays = {f"{model}{name}": array for name, array in weights.stored("tf1").items()}
    write_bundle(out / PREFIX, {**arrays, **{f"{name}{EMA_ENDING}": array for name, array in arrays.items()}})
    files.write_bytes(out / "checkpoint", f'model_checkpoint_path: "{PREFIX}"\n'.encode())
