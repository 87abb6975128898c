"""Images → probabilities or features, from Python and from the command line.

What is public here is imported when it is first used: processes that decode images need no more than `inputs`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effnet_jax.predict.__main__ import main
    from effnet_jax.predict.classifier import Classifier, FeatureExtractor, load_classifier, load_features, predictions
    from effnet_jax.predict.inputs import find_images
    from effnet_jax.predict.stream import Result

__all__ = [
    "Classifier",
    "FeatureExtractor",
    "Result",
    "find_images",
    "load_classifier",
    "load_features",
    "main",
    "predictions",
]

_HOMES = {
    "Classifier": "classifier",
    "FeatureExtractor": "classifier",
    "Result": "stream",
    "find_images": "inputs",
    "load_classifier": "classifier",
    "load_features": "classifier",
    "main": "__main__",
    "predictions": "classifier",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
