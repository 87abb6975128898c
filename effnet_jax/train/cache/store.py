"""The trunk cache: the outputs of a frozen prefix, computed once for a phase's views and read again in every epoch.

Where the classifier alone is trained these are pooled features, and a step costs one small matrix product instead of
the whole network. The cache holds `views` augmented views of every training image (epoch e shows view e mod `views`)
and the validation images as they are evaluated. Each host computes and keeps all of them, since the shuffled order may
ask any host for any example.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax import files
from effnet_jax.data.augment import soft_targets
from effnet_jax.data.loader import Batches
from effnet_jax.data.order import BalancedOrder, step_epochs, step_indices
from effnet_jax.train.cache.plan import CachePlan
from effnet_jax.train.step.steps import Augment, Batch

_RECORD = "cache.json"


def cached_inputs(classes: int, smoothing: float) -> Augment:
    """Returns what takes the place of augmentation in a step on cached outputs: (batch, keys) → (outputs, targets)."""

    def inputs(batch: Batch, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        del keys
        return batch["image"], soft_targets(batch["label"], classes, smoothing)

    return inputs


@dataclasses.dataclass
class TrunkCache:
    """A cache and how much of it is filled.

    Attributes:
      plan: what it holds.
      key: hash of what its numbers depend on, of a cache on disk.
      arrays: by split the outputs, [views · N, …] or [N, …], and in `<split>_label`, `<split>_index` int32 [N].
      done: rows that are filled, by split.
      folder: where it is on disk; None in memory.
    """

    plan: CachePlan
    key: str
    arrays: dict[str, np.ndarray]
    done: dict[str, int]
    folder: Path | None

    @property
    def missing(self) -> int:
        """Rows that are not filled yet."""
        return sum(self.plan.rows.values()) - sum(self.done.values())

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray, balanced: BalancedOrder | None = None
    ) -> Batches:
        """Endless training batches, the examples those of `loader.train_batches`, with outputs in place of `image`."""
        count, step = self.plan.images["train"], start_step
        while True:
            if balanced:
                indices, epochs = balanced.at(step * batch_size + rows)
            else:
                indices = step_indices(step, batch_size=batch_size, seed=seed, count=count)[rows]
                epochs = step_epochs(step, batch_size=batch_size, count=count)[rows]
            places = epochs % self.plan.views * count + indices
            yield {"image": self.arrays["train"][places], "epoch": epochs, **self._about("train", indices)}
            step += 1

    def eval_batches(self, split: str, *, batch_size: int, rows: np.ndarray) -> Batches:
        """Evaluation batches as those of `loader.eval_batches`, with outputs in place of `image`."""
        for start in range(0, self.plan.images[split], batch_size):
            positions = start + rows
            inside = positions < self.plan.images[split]
            places = np.where(inside, positions, 0)
            about = self._about(split, places)
            # An image that was skipped has index -1.
            mask = (inside & (about["index"] >= 0)).astype(np.float32)
            yield {"image": self.arrays[split][places], "mask": mask, **about}

    def _about(self, split: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: self.arrays[f"{split}_{name}"][rows] for name in ("label", "index")}

    def write(self, split: str, rows: np.ndarray, outputs: np.ndarray, batch: dict[str, np.ndarray]) -> None:
        """Fills rows that follow the filled ones; `record` makes it last."""
        self.arrays[split][rows] = outputs
        positions = rows % self.plan.images[split]
        for name in ("label", "index"):
            self.arrays[f"{split}_{name}"][positions] = batch[name]
        self.done[split] = int(rows[-1]) + 1

    def record(self) -> None:
        """Writes down how far a cache on disk is filled, once its rows are there."""
        if self.folder:
            for array in self.arrays.values():
                assert isinstance(array, np.memmap)
                array.flush()
            files.write_json(self.folder / _RECORD, {"key": self.key, "done": self.done})


def open_cache(plan: CachePlan, key: str, folder: Path | None) -> TrunkCache:
    """Makes the arrays of a cache, or opens those of the same key on disk; of another key they are thrown away.

    Args:
      plan: what it holds.
      key: from `cache_key`, for a cache on disk.
      folder: likewise; None for a cache in memory.

    Raises:
      DiskError: there is too little room.
    """
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
    for split, rows in plan.rows.items():
        shapes[split] = ((rows, *plan.shape), jnp.dtype(plan.dtype))
        shapes |= {f"{split}_{name}": ((plan.images[split],), np.dtype(np.int32)) for name in ("label", "index")}
    done = dict.fromkeys(plan.rows, 0)
    if folder is None:
        return TrunkCache(plan, key, {name: np.empty(*shape) for name, shape in shapes.items()}, done, None)
    sizes = {folder / f"{name}.bin": math.prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    known = _read_record(folder)
    if known.get("key") == key and all(path.exists() and path.stat().st_size == size for path, size in sizes.items()):
        done = known["done"]
        if done.get("validation", 0) < plan.rows.get("validation", 0):
            done["validation"] = 0  # it is filled in one go
    else:
        files.remove(folder)
        files.check_space(folder, plan.bytes, "the trunk cache")
        files.make_folder(folder)
        for path, size in sizes.items():
            files.allocate(path, size)
    arrays: dict[str, np.ndarray] = {
        name: np.memmap(folder / f"{name}.bin", dtype, "r+", shape=shape) for name, (shape, dtype) in shapes.items()
    }
    return TrunkCache(plan, key, arrays, done, folder)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return files.read_json(folder / _RECORD) or {}
    except ValueError:  # cut off: as good as none
        return {}
