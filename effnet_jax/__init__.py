"""EfficientNet in JAX: exact weights, transfer learning by phases.

The public surface is imported when it is first used, so that `import effnet_jax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effnet_jax.model.efficientnet import create_model
    from effnet_jax.model.variants import VARIANTS
    from effnet_jax.predict import load_classifier
    from effnet_jax.train.step.freeze import FreezePlan
    from effnet_jax.weights.store import load_weights

__version__ = "0.1.0"

__all__ = ["VARIANTS", "FreezePlan", "create_model", "load_classifier", "load_weights"]

_HOMES = {
    "VARIANTS": "effnet_jax.model.variants",
    "FreezePlan": "effnet_jax.train.step.freeze",
    "create_model": "effnet_jax.model.efficientnet",
    "load_classifier": "effnet_jax.predict",
    "load_weights": "effnet_jax.weights.store",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'effnet_jax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
