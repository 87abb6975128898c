"""An ONNX model by jax2onnx, for onnxruntime and its like, with any number of images. Needs jax2onnx."""

from pathlib import Path

from effnet_jax.exports.base import Weights
from effnet_jax.exports.card import write_about
from effnet_jax.exports.stablehlo import program
from effnet_jax.weights.checkpoint import needs

FILE = "model.onnx"


def write(weights: Weights, out: Path) -> None:
    """Writes the folder: from images float32 [B, R, R, 3], levels 0..255, to logits or pooled features."""
    jax2onnx = needs("jax2onnx", "the format onnx", "onnx")
    side = weights.metadata.resolution
    predict = program(weights, lowering="native")  # it knows plain operations alone
    jax2onnx.to_onnx(predict, inputs=[("B", side, side, 3)], return_mode="file", output_path=str(out / FILE))
    write_about(weights, out, "onnx")
