"""What every format is given, and what comes with what it writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from effnet_jax.model.variants import NORMALIZATIONS, Variant, get_variant
from effnet_jax.trees import nest
from effnet_jax.weights.layouts import LAYOUTS
from effnet_jax.weights.metadata import Metadata


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights to be written.

    Attributes:
      leaves: every parameter and statistic by its path, `params/stem/conv/kernel`.
      metadata: what they are.
      name: what they are called, for model cards.
      figures: accuracies by split, of the run that they are of.
    """

    leaves: Mapping[str, np.ndarray]
    metadata: Metadata
    name: str
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def variant(self) -> Variant:
        """The architecture."""
        return get_variant(self.metadata.variant)

    @property
    def variables(self) -> dict[str, Any]:
        """The leaves as nested dicts."""
        return nest(self.leaves)

    def stored(self, layout: str) -> dict[str, np.ndarray]:
        """The arrays under another program's names, in its shapes and orders of axes."""
        rows = LAYOUTS[layout].table(self.variant, self.metadata.num_classes)
        return {row.name: row.encode(np.asarray(self.leaves[row.tensor.path], np.float32)) for row in rows}

    @property
    def scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What the network does to pixels from 0 to 1: (what is subtracted, what it is divided by)."""
        mean, scale = NORMALIZATIONS[self.metadata.normalization]
        return tuple(value / 255 for value in mean), tuple(value / 255 for value in scale)
