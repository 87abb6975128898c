"""The evaluation of a split: exact, over every example, with the weights and with their moving averages."""

import collections
from collections.abc import Iterator
from typing import Any

import jax

from effnet_jax.data.loader import prefetch
from effnet_jax.train.cache.store import TrunkCache
from effnet_jax.train.phases import Phase
from effnet_jax.train.run import Run
from effnet_jax.train.step.state import TrainState, Variables

Results = dict[str, dict[str, float]]  # split → figures

_AHEAD = 4  # batches that the devices may have waiting


def evaluate(run: Run, phase: Phase, state: TrainState, split: str, cache: TrunkCache | None = None) -> Results:
    """Evaluates a split.

    Args:
      run: what the run works with.
      phase: whose resolution counts.
      state: with the weights.
      split: of the config.
      cache: taken for the frozen units where it holds this split.

    Returns:
      `{split: {"loss", "accuracy", "count"}}`, and the same for `<split>_ema` with averages; nothing where the config
      names no such split.

    Raises:
      StopAsked: between two batches.
      DataError: an image that cannot be decoded.
    """
    if split not in run.sources:
        return {}
    choices: dict[str, Variables] = {split: state.variables}
    if state.ema is not None:
        choices[f"{split}_ema"] = state.ema
    totals: Results = {name: {"loss": 0.0, "correct": 0.0, "count": 0.0} for name in choices}
    for name, sums in _sums(run, phase, choices, split, cache):
        for key, value in jax.device_get(sums).items():
            totals[name][key] += float(value)
    run.skipped.update()
    return {
        name: {
            "loss": sums["loss"] / max(sums["count"], 1),
            "accuracy": sums["correct"] / max(sums["count"], 1),
            "count": int(sums["count"]),
        }
        for name, sums in totals.items()
    }


def _sums(
    run: Run, phase: Phase, choices: dict[str, Variables], split: str, cache: TrunkCache | None
) -> Iterator[tuple[str, Any]]:
    """Yields each batch's sums some batches after it was given to the devices, so that these never wait."""
    cached = cache if cache and split in cache.plan.images else None
    eval_step = run.eval_step(phase.resolution, cached.plan.first if cached else None)
    size = phase.feed.eval_batch_size
    if cached:
        batches = cached.eval_batches(split, batch_size=size, rows=run.rows(size))
    else:
        batches = phase.feed.evaluating(run.sources[split], size, run.rows(size), run.skipped.met[split])
    waiting: collections.deque[tuple[str, Any]] = collections.deque()
    try:
        for batch in prefetch(batches, run.partition.place_batch):
            run.tick()
            waiting.extend((name, eval_step(variables, batch)) for name, variables in choices.items())
            while len(waiting) > _AHEAD * len(choices):
                yield waiting.popleft()
        yield from waiting
    finally:
        batches.close()
