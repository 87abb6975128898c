"""A SavedModel by jax2tf, for TensorFlow Serving and its like. Needs TensorFlow."""

from pathlib import Path
from typing import Any

from effnet_jax.exports.base import Weights
from effnet_jax.exports.card import write_about
from effnet_jax.exports.stablehlo import program
from effnet_jax.weights.checkpoint import needs


def write(weights: Weights, out: Path, input_size: tuple[int, int] | None = None) -> None:
    """Writes the folder: a signature `serving_default` from images [N, H, W, 3], levels 0..255, to `output_0`.

    Args:
      weights: what to write.
      out: the folder.
      input_size: of images that the program crops and resizes by itself (uint8); None: squares of the weights'
        resolution (float32).
    """
    tensorflow = needs("tensorflow", "the format savedmodel", "tensorflow")
    module = tensorflow.Module()
    module.predict = function(weights, input_size, batch=None)
    tensorflow.saved_model.save(module, str(out), signatures=module.predict)
    write_about(weights, out, "tensorflow")


def function(weights: Weights, input_size: tuple[int, int] | None, batch: int | None) -> Any:
    """The program as a function of TensorFlow's.

    Args:
      weights: its values.
      input_size: as of `write`.
      batch: how many images it takes; None: any number.
    """
    tensorflow = needs("tensorflow", "this format", "tensorflow")
    from jax.experimental import jax2tf

    height, width = input_size or (weights.metadata.resolution,) * 2
    shapes = [f"(b, {height}, {width}, 3)"] if batch is None else None
    converted = jax2tf.convert(program(weights, input_size), polymorphic_shapes=shapes, with_gradient=False)
    dtype = tensorflow.uint8 if input_size else tensorflow.float32
    asked = tensorflow.TensorSpec((batch, height, width, 3), dtype, name="images")
    return tensorflow.function(converted, input_signature=[asked], autograph=False)
