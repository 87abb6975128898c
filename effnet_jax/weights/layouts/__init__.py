"""The ways in which other programs store EfficientNet: one table of names for each."""

from collections.abc import Collection

from effnet_jax.weights.layouts.base import Collected, Layout, Stored
from effnet_jax.weights.layouts.keras import Keras, KerasNumbered
from effnet_jax.weights.layouts.tf1 import TF1
from effnet_jax.weights.layouts.tfjs import GraphModel
from effnet_jax.weights.layouts.torch import Lukemelas, Timm

__all__ = ["LAYOUTS", "Collected", "Layout", "Stored", "layout_of"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (TF1(), Timm(), Lukemelas(), Keras(), KerasNumbered(), GraphModel())
}


def layout_of(stored: Collection[str]) -> Layout | None:
    """Whose names these are; None where nobody's are known."""
    return next((layout for layout in LAYOUTS.values() if layout.recognises(stored)), None)
