"""The synthetic checkpoint that the golden outputs were computed with: every value a function of (name, shape, seed).

A value comes from raw 64-bit words of a Philox generator with the key (crc32 of the tensor's TensorFlow name, seed),
and exact arithmetic, so it is the same with every NumPy on every platform. `normal` sums the four 16-bit parts of a
word, `uniform` takes its upper 53 bits.
"""

import math
import os
import zlib

import numpy as np
from flax import traverse_util

from effnet_jax.model.variants import VARIANTS, Variant
from effnet_jax.weights.layouts import LAYOUTS
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import write_weights

# XLA's level of optimisation: a computation that runs once is compiled in half the time.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}

_DEVIATION = math.sqrt((65536.0**2 - 1.0) / 3.0)  # of the sum of four 16-bit uniforms


def _words(name: str, seed: int, count: int) -> np.ndarray:
    return np.random.Philox(key=np.array([zlib.crc32(name.encode()), seed], np.uint64)).random_raw(count)


def normal(name: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    parts = _words(name, seed, math.prod(shape)).astype("<u8").view("<u2").reshape(-1, 4)
    return ((parts.sum(axis=1, dtype=np.int64) - 131070).astype(np.float64) / _DEVIATION).reshape(shape)


def uniform(name: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return ((_words(name, seed, math.prod(shape)) >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def tf_value(name: str, shape: tuple[int, ...], seed: int, damped: bool) -> np.ndarray:
    """Returns the float32 value of a TensorFlow variable, scaled so that activations stay of order 1 at any depth."""
    leaf = name.rsplit("/", 1)[-1]
    if leaf == "gamma":
        value = (0.5 + uniform(name, seed, shape)) * (0.25 if damped else 1.0)
    elif leaf == "moving_variance":
        value = 0.5 + uniform(name, seed, shape)
    else:
        scale = {"beta": 0.2, "bias": 0.1, "moving_mean": 0.1}.get(leaf)
        if leaf == "depthwise_kernel":
            scale = math.sqrt(2.0 / (shape[0] * shape[1]))
        elif leaf == "kernel" and len(shape) == 2:
            scale = math.sqrt(1.0 / shape[0])
        elif leaf == "kernel":
            scale = math.sqrt((0.5 if "/se/" in name else 2.56) / math.prod(shape[:3]))
        value = scale * normal(name, seed, shape)
    return value.astype(np.float32)


def damped_gammas(variant: Variant) -> set[str]:
    """The scales of each batch norm that ends a block with a shortcut."""
    return {f"params/{block.name}/project_bn/scale" for block in variant.blocks if block.skip}


def variables(variant_name: str, seed: int = 0, num_classes: int = 1000) -> dict:
    """Returns `{"params": …, "batch_stats": …}` of the synthetic checkpoint; its EMA twins are those of seed + 1."""
    variant = VARIANTS[variant_name]
    damped = damped_gammas(variant)
    flat = {}
    for row in LAYOUTS["tf1"].table(variant, num_classes):
        name = f"efficientnet-{variant_name}/{row.name}"
        flat[tuple(row.tensor.path.split("/"))] = row.decode(tf_value(name, row.shape, seed, row.tensor.path in damped))
    return traverse_util.unflatten_dict(flat)


def write_weights_dir(path: str | os.PathLike, variant_name: str = "lite0") -> None:
    """Writes a weights dir of the synthetic checkpoint, of 1000 classes."""
    family = "lite" if VARIANTS[variant_name].lite else "imagenet"
    write_weights(path, variables(variant_name), Metadata(variant_name, family, family, "pad32", 224, 1000))
