"""A `.tflite` for LiteRT (once TensorFlow Lite), one image at a time. Needs TensorFlow."""

from pathlib import Path

from effnet_jax import files
from effnet_jax.exports.base import Weights
from effnet_jax.exports.card import write_about
from effnet_jax.exports.savedmodel import function
from effnet_jax.weights.checkpoint import needs

FILE = "model.tflite"


def write(weights: Weights, out: Path, input_size: tuple[int, int] | None = None) -> None:
    """Writes the folder. `input_size`: as of `savedmodel.write`."""
    tensorflow = needs("tensorflow", "the format litert", "tensorflow")
    concrete = function(weights, input_size, batch=1).get_concrete_function()
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([concrete], tensorflow.Module())
    files.write_bytes(out / FILE, converter.convert())
    write_about(weights, out, "litert")
