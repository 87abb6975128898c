"""Models of random values: checkpoints in memory and in files, and a weights dir."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from effnet_jax.model.variants import VARIANTS
from effnet_jax.weights.checkpoint import Checkpoint, Entry
from effnet_jax.weights.layouts import LAYOUTS
from effnet_jax.weights.layouts.tf1 import EMA_ENDING


class MemoryCheckpoint(Checkpoint):
    """Arrays from a dict."""

    def __init__(self, arrays: dict[str, np.ndarray], source: str = "model.ckpt") -> None:
        super().__init__()
        self.arrays = arrays
        self.source = Path(source)
        self.files = ()
        self.entries = {name: Entry(array.shape, array.dtype.name) for name, array in arrays.items()}

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]


@pytest.fixture(scope="session")
def memory_checkpoint() -> type[MemoryCheckpoint]:
    return MemoryCheckpoint


@pytest.fixture(scope="session")
def make_arrays() -> Callable[..., dict[str, np.ndarray]]:
    """A function that makes the arrays of a training checkpoint, under TensorFlow's names.

    The k-th tensor holds k + 0.5 everywhere, its moving average k + 0.25, so that a mix-up shows; `random=True` fills
    them with random numbers instead. Constant arrays take no memory.
    """

    def make(
        variant: str = "b0",
        prefix: str | None = None,
        num_classes: int = 1000,
        raw: bool = True,
        ema: bool = True,
        slots: bool = True,
        random: bool = False,
    ) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(0)

        def fill(value: float, shape: tuple[int, ...]) -> np.ndarray:
            if random:
                return generator.random(shape, np.float32)
            return np.broadcast_to(np.float32(value), shape)

        prefix = f"efficientnet-{variant}/" if prefix is None else prefix
        arrays = {}
        for number, row in enumerate(LAYOUTS["tf1"].table(VARIANTS[variant], num_classes)):
            name = prefix + row.name
            if raw:
                arrays[name] = fill(number + 0.5, row.shape)
            if ema:
                arrays[name + EMA_ENDING] = fill(number + 0.25, row.shape)
            if slots and number < 3:
                arrays[f"{name}/RMSProp"] = fill(1, row.shape)
                arrays[f"{name}/RMSProp_1"] = fill(0, row.shape)
        if slots:
            arrays["global_step"] = np.array(218949, np.int64)
        return arrays

    return make
