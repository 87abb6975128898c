"""What a run works with: its batches for training, and the evaluation of a split."""

import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from effnet_jax.data.loader import eval_batches, prefetch, square_size, train_batches
from effnet_jax.data.sources.base import Source
from effnet_jax.train.checkpoints import Checkpoints
from effnet_jax.train.partition import Partition
from effnet_jax.train.report import Report
from effnet_jax.train.setup import Phase
from effnet_jax.train.skipped import SkippedImages
from effnet_jax.train.state import TrainState, Variables
from effnet_jax.train.trunk_cache import TrunkCache

Results = dict[str, dict[str, float]]  # split → figures


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run works with; nothing of it changes."""

    config: ConfigDict
    sources: dict[str, Source]
    model: Any
    workdir: Path
    crop: str
    partition: Partition
    eval_step: Callable[..., Any]  # (resolution, first unit) → the compiled step
    checkpoints: Checkpoints
    report: Report
    skipped: SkippedImages
    stopped: Callable[[], str | None]  # the signal that asks to stop, once it came

    @property
    def steps_per_epoch(self) -> float:
        return len(self.sources["train"]) / self.config.batch_size


def training_stream(
    run: Run, phase: Phase, step: int, cache: TrunkCache | None
) -> Generator[dict[str, Any], None, None]:
    """Batches on the devices, from the one of the step after `step` on."""
    order: dict[str, Any] = {
        "batch_size": run.config.batch_size,
        "seed": run.config.seed,
        "start_step": step,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    if cache:
        batches = cache.train_batches(**order)
    else:
        batches = train_batches(
            run.sources["train"],
            workers=run.config.data.workers,
            size=square_size(phase.resolution, run.config.data.size),
            cache_gib=run.config.data.cache_gib,
            **order,
        )
    yield from prefetch(batches, run.partition.place_batch)


def evaluate(run: Run, phase: Phase, state: TrainState, split: str, cache: TrunkCache | None = None) -> Results:
    """Evaluates a split exactly, over every example, with the weights and with their moving averages.

    Args:
      run: what the run works with.
      phase: whose resolution counts.
      state: with the weights.
      split: of the config.
      cache: taken for the frozen units where it holds this split.

    Returns:
      `{split: {"loss", "accuracy", "count"}}`, and the same for `<split>_ema` with averages; nothing where the config
      names no such split.
    """
    if split not in run.sources:
        return {}
    choices: dict[str, Variables] = {split: state.variables}
    if state.ema is not None:
        choices[f"{split}_ema"] = state.ema
    totals: Results = {name: {"loss": 0.0, "correct": 0.0, "count": 0.0} for name in choices}
    order: dict[str, Any] = {
        "batch_size": run.config.eval_batch_size or run.config.batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    if cache and split in cache.plan.images:
        eval_step = run.eval_step(phase.resolution, cache.plan.first)
        batches = cache.eval_batches(split, **order)
    else:
        eval_step = run.eval_step(phase.resolution)
        batches = eval_batches(
            run.sources[split],
            resolution=phase.resolution,
            crop=run.crop,
            evaluation=run.config.data.evaluation,
            workers=run.config.data.workers,
            **order,
        )
    for batch in prefetch(batches, run.partition.place_batch):
        for name, variables in choices.items():
            for key, value in eval_step(variables, batch).items():
                totals[name][key] += float(value)
    run.skipped.update(run.sources)
    return {
        name: {
            "loss": sums["loss"] / max(sums["count"], 1),
            "accuracy": sums["correct"] / max(sums["count"], 1),
            "count": int(sums["count"]),
        }
        for name, sums in totals.items()
    }
