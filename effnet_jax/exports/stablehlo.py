"""StableHLO: one artifact for cpu, cuda and tpu that needs no more than jax, with a loader of a few lines beside it.

The scaling of pixels is inside. On request the crop and the resize are, too, for images of one size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from effnet_jax import files
from effnet_jax.data.preprocess import crop_window
from effnet_jax.data.resize import bicubic_taps
from effnet_jax.exports.base import Weights
from effnet_jax.exports.card import write_about
from effnet_jax.model.efficientnet import create_model
from effnet_jax.weights.checkpoint import needs

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
_LOADER = '''"""Loads model.stablehlo. Needs jax, and flatbuffers, which jax.export reads it with.

    images = numpy.zeros((8, {height}, {width}, 3), "{dtype}")  # levels 0..255, as many images as you like
    logits = load()(images)
"""

import pathlib

import jax
from jax import export


def load(folder=pathlib.Path(__file__).parent):
    """Returns a function from images [N, {height}, {width}, 3] to {outputs}, compiled at its first use."""
    return jax.jit(export.deserialize(pathlib.Path(folder, "model.stablehlo").read_bytes()).call)
'''


def write(weights: Weights, out: Path, input_size: tuple[int, int] | None = None) -> None:
    """Writes the folder.

    Args:
      weights: what to write.
      out: the folder.
      input_size: height and width of images that the program crops and resizes by itself; None: it gets squares of
        the weights' resolution.
    """
    needs("flatbuffers", "the format stablehlo")  # what jax.export writes with
    predict, metadata = program(weights, input_size), weights.metadata
    height, width = input_size or (metadata.resolution,) * 2
    dtype = "uint8" if input_size else "float32"
    (batch,) = export.symbolic_shape("b")
    asked = jax.ShapeDtypeStruct((batch, height, width, 3), dtype)
    exported = export.export(jax.jit(predict), platforms=PLATFORMS)(asked)
    files.write_bytes(out / FILE, bytes(exported.serialize()))
    outputs = f"logits [N, {metadata.num_classes}]" if metadata.num_classes else "pooled features"
    loader = _LOADER.format(height=height, width=width, dtype=dtype, outputs=outputs)
    files.write_bytes(out / "load.py", loader.encode())
    write_about(weights, out, "jax")


def program(
    weights: Weights, input_size: tuple[int, int] | None = None, lowering: str = "platform"
) -> Callable[[Any], Array]:
    """Returns the function from images to logits, or to pooled features where there is no classifier.

    Args:
      weights: its values.
      input_size: as of `write`.
      lowering: of the network (`create_model`).
    """
    metadata = weights.metadata
    model = create_model(
        metadata.variant,
        num_classes=metadata.num_classes or 1,
        include_top=metadata.num_classes > 0,
        normalization=metadata.normalization,
        lowering=lowering,
    )
    variables = weights.variables

    def predict(images: Array) -> Array:
        images = images.astype(jnp.float32)
        if input_size is not None:
            images = _view(images, weights, *input_size)
        outputs = model.apply(variables, images)
        assert isinstance(outputs, Array)  # no statistics are asked for
        return outputs

    return predict


def _view(images: Array, weights: Weights, height: int, width: int) -> Array:
    """What evaluation sees of images [N, H, W, 3]: [N, R, R, 3]."""
    metadata = weights.metadata
    side = metadata.resolution
    if metadata.evaluation == "crop":
        top, left, size = crop_window(height, width, side, metadata.crop)
        images = images[:, top : top + size, left : left + size]
    if metadata.resize == "antialias":  # up to the rounding of Pillow's result to whole levels
        return jax.image.resize(images, (images.shape[0], side, side, 3), "cubic", antialias=True)
    rows, columns = (jnp.asarray(_matrix(size, side)) for size in images.shape[1:3])
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("rh,nhwc,sw->nrsc", rows, images, columns, precision=highest)


def _matrix(size: int, resized: int) -> np.ndarray:
    """TensorFlow 1's bicubic along one side as a matrix, float32 [resized, size]."""
    matrix = np.zeros((resized, size), np.float32)
    indices, taps = bicubic_taps(size, resized)
    for index, weight in zip(indices, taps, strict=True):  # [resized] each
        np.add.at(matrix, (np.arange(resized), index), weight)
    return matrix
