"""Batch norm folded into the convolutions before it, for inference: a pass less over each convolution's output."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from effnet_jax.model.batch_norm import EPSILON

_NORMALISED = {"conv": "bn", "expand_conv": "expand_bn", "depthwise_conv": "depthwise_bn", "project_conv": "project_bn"}


def fold_batch_norm(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Folds stored statistics and scales into kernels; what is left of each batch norm is a bias.

    Source: Jacob et al., "Quantization and Training of Neural Networks" (2018), section 3.2, equation 14.

    Args:
      variables: `{"params": …, "batch_stats": …}` of any variant, as nested mappings of arrays. They stay as they are.

    Returns:
      `{"params": …}` for `create_model(…, folded=True)`, NumPy arrays in float32. The products are formed in float64,
      so that a kernel is rounded once; the model's outputs are the same up to the rounding of float32.
    """
    folded: dict[str, Any] = {}
    for unit, layers in variables["params"].items():
        folded[unit] = dict(layers)
        for conv, norm in _NORMALISED.items():
            if conv not in layers:
                continue
            stored = variables["batch_stats"][unit][norm]
            scale, bias, mean, var = (
                np.asarray(value, np.float64)
                for value in (layers[norm]["scale"], layers[norm]["bias"], stored["mean"], stored["var"])
            )
            factor = scale / np.sqrt(var + EPSILON)
            kernel = np.asarray(layers[conv]["kernel"], np.float64)
            folded[unit][conv] = {"kernel": (kernel * factor).astype(np.float32)}
            folded[unit][norm] = {"bias": (bias - mean * factor).astype(np.float32)}
    return {"params": folded}
