"""timm: a folder as on Hugging Face's hub, with `model.safetensors`, `config.json` and a model card.

`timm.create_model("tf_efficientnet_b0", checkpoint_path=".../model.safetensors")`, with `strict=True`; or the folder
as a whole, `timm.create_model("local-dir:FOLDER")`.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from effnet_jax import files
from effnet_jax.exports.base import Weights
from effnet_jax.exports.card import write_card
from effnet_jax.weights.checkpoint import needs


def write(weights: Weights, out: Path) -> None:
    """Writes the folder."""
    safetensors = needs("safetensors.numpy", "the format timm")
    arrays = weights.stored("timm")
    for name in [name for name in arrays if name.endswith(".running_var")]:
        arrays[name.replace(".running_var", ".num_batches_tracked")] = np.zeros((), np.int64)
    files.write_bytes(out / "model.safetensors", safetensors.save(arrays, metadata={"format": "pt"}))
    files.write_json(out / "config.json", config_of(weights))
    write_card(weights, out, "timm")


def config_of(weights: Weights) -> dict[str, Any]:
    """What timm's `config.json` holds."""
    metadata, variant = weights.metadata, weights.variant
    mean, std = weights.scaling
    side = metadata.resolution
    padding = {"pad32": 32, "frac": round(side / 7), "none": 0}[metadata.crop]
    share = 1.0 if metadata.evaluation == "resize" else side / (side + padding)
    config: dict[str, Any] = {
        "architecture": f"tf_efficientnet_{variant.name}",
        "num_classes": metadata.num_classes,
        "num_features": variant.top_filters,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": round(share, 6),
            "crop_mode": "squash" if metadata.evaluation == "resize" else "center",
            "mean": [round(value, 9) for value in mean],
            "std": [round(value, 9) for value in std],
            "num_classes": metadata.num_classes,
            "pool_size": [math.ceil(side / 32)] * 2,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
    config["effnet_jax"] = {"resize": metadata.resize}
    if metadata.class_names:
        config["label_names"] = list(metadata.class_names)
    return config
