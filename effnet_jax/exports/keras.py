"""Keras: a `.weights.h5` for `keras.applications.EfficientNetB0(weights=None, classes=…)` and its like.

The scaling of pixels is in the file, as the mean and variance of the model's Normalization layer.
"""

from pathlib import Path

import numpy as np

from effnet_jax.errors import WeightsError
from effnet_jax.exports.base import Weights
from effnet_jax.weights.checkpoint import needs

FILE = "model.weights.h5"
_VARIANTS = tuple(f"b{number}" for number in range(8))


def write(weights: Weights, out: Path) -> None:
    """Writes the file into a folder."""
    h5py = needs("h5py", "the format keras")
    if weights.variant.name not in _VARIANTS:
        raise WeightsError(
            f"{weights.name} is of {weights.variant.name}, which keras.applications does not have (it has "
            f"{_VARIANTS[0]} to {_VARIANTS[-1]}): take --format=savedmodel or timm"
        )
    mean, scale = weights.scaling
    arrays = weights.stored("keras3")
    arrays["layers/normalization/vars/0"] = np.asarray(mean, np.float32)
    arrays["layers/normalization/vars/1"] = np.square(np.asarray(scale, np.float64)).astype(np.float32)
    arrays["layers/normalization/vars/2"] = np.zeros((), np.int32)
    with h5py.File(out / FILE, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
