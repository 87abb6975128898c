"""Filling a trunk cache: once at the begin of a phase, and again after a resume where it was in memory."""

import contextlib
import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax import __version__, files, hosts
from effnet_jax.data.augment import resize_on_device
from effnet_jax.data.loader import Batches, prefetch
from effnet_jax.errors import RunError
from effnet_jax.model.efficientnet import pool
from effnet_jax.train.cache.plan import cache_key, trunk_hash, trunk_variables
from effnet_jax.train.cache.store import TrunkCache, open_cache
from effnet_jax.train.meter import duration
from effnet_jax.train.phases import Phase
from effnet_jax.train.run import Run
from effnet_jax.train.step.state import TrainState, Variables
from effnet_jax.train.step.steps import PURPOSE_AUGMENT, Batch, example_keys

_CACHE_NAME = re.compile(r"trunk_cache_(\d+)(_\d+)?")  # process and phase; earlier versions had one for all phases
_SECONDS_TO_ESTIMATE = 5.0
_ROWS_BETWEEN_RECORDS = 4096


def prepare_cache(run: Run, phase: Phase, state: TrainState) -> TrunkCache | None:
    """Opens the cache of a phase and fills it, telling what it costs.

    Where the run keeps moving averages whose frozen units are others than the weights', by a phase before, the
    validation split is evaluated without the cache and not kept.

    Args:
      run: what the run works with.
      phase: the phase.
      state: at the phase's begin; its frozen units count.

    Returns:
      The cache, full; None where the phase has none.

    Raises:
      StopAsked: before it is full; on a disk it goes on from there.
      DiskError: there is too little room.
      RunError: an output that the cache's type cannot hold.
      DataError: an image that cannot be decoded.
    """
    if phase.cache is None:
        return None
    sweep_caches(run, phase)  # a kill may have come before those of finished phases were gone
    plan = phase.cache
    variables = trunk_variables(plan, state.variables)
    # Brought together before it is known who has something to fill: all processes have to come for it.
    trunk = trunk_hash(plan, variables)
    if state.ema is not None and trunk_hash(plan, state.ema) != trunk:
        plan = dataclasses.replace(plan, images={"train": plan.images["train"]})
    folder = cache_folder(run, phase)
    place = f"in {folder}" if folder else "in memory"
    run.screen.say(f"trunk cache: {plan}, {place} (budget {plan.gib:g} GiB)")
    with hosts.agree("the trunk cache is opened") as filled:
        # The key reads every image, and only a cache on disk can be an old one.
        key = cache_key(plan, _about(run, phase), trunk, run.sources) if folder else ""
        cache = open_cache(plan, key, folder)
        filled.append(cache.done)
    cache.done = {split: min(done[split] for done in filled) for split in cache.done}  # they fill it together
    if cache.missing:
        _run_fill(run, cache, fill_cache(run, phase, variables, cache))
    return cache


def _about(run: Run, phase: Phase) -> dict[str, Any]:
    """The settings that a cache's numbers depend on, as JSON has them."""
    return {
        "version": __version__,
        "variant": run.config["variant"],
        "normalization": run.model.normalization,
        "dtype": run.config["dtype"],
        "seed": phase.feed.seed,
        "resolution": phase.resolution,
        "size": phase.feed.square,
        "evaluation": [phase.feed.evaluation, phase.feed.crop, phase.feed.resize],
        "augment": {name: value for name, value in phase.augment.items() if name != "label_smoothing"},
    }


def cache_folder(run: Run, phase: Phase) -> Path | None:
    """Where this process keeps the cache of a phase on disk; None for one in memory, or none."""
    if phase.cache is None or phase.cache.place != "disk":
        return None
    return _cache_parent(run) / f"trunk_cache_{hosts.index()}_{phase.number}"


def _cache_parent(run: Run) -> Path:
    """The run dir, or a folder in `cache_dir` of the run's own."""
    if not run.config.cache_dir:
        return Path(run.workdir)
    place = os.fspath(files.absolute(run.workdir))
    own = f"{run.workdir.name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    return Path(files.as_path(run.config.cache_dir)) / own


def sweep_caches(run: Run, phase: Phase | None = None) -> None:
    """Deletes this process's caches on disk but that of a phase, and what processes left that a run had more of."""
    kept = cache_folder(run, phase) if phase else None
    for parent in {_cache_parent(run), Path(run.workdir)} if files.is_local(run.workdir) else {_cache_parent(run)}:
        for name in files.visible(parent):
            match = _CACHE_NAME.fullmatch(name)
            gone = match and hosts.is_first() and int(match[1]) >= hosts.count()
            if match and parent / name != kept and (gone or int(match[1]) == hosts.index()):
                files.remove(parent / name)
    own = _cache_parent(run)
    if run.config.cache_dir and own.is_dir() and not any(own.iterdir()):
        files.remove(own)


def _run_fill(run: Run, cache: TrunkCache, fill: Generator[int]) -> None:
    """Fills, with a bar and an estimate of the time, until it is done or somebody wishes to stop."""
    total = cache.missing
    began, first, told = time.monotonic(), total, 0.0
    recorded = total
    run.screen.start_bar("trunk cache", total)
    try:
        for missing in fill:
            if first == total:  # the first batch compiled
                began, first = time.monotonic(), missing
            taken = time.monotonic() - began
            # After some seconds, then ever more rarely: the only sign of life where there is no bar.
            if first > missing and taken > max(_SECONDS_TO_ESTIMATE, 3 * told):
                told = taken
                left = duration(taken / (first - missing) * missing)
                run.screen.say(f"trunk cache: {1 - missing / total:.0%} done, about {left} left")
            run.screen.advance(total - missing)
            run.skipped.update()
            if recorded - missing > _ROWS_BETWEEN_RECORDS:
                cache.record()
                recorded = missing
            run.tick()
    finally:  # what is filled stays, whatever ended it
        fill.close()
        cache.record()
        run.screen.end_bar()


def fill_cache(run: Run, phase: Phase, variables: Variables, cache: TrunkCache) -> Generator[int]:
    """Computes what is missing: each device its share of every batch, and every process keeps all of it.

    Args:
      run: what the run works with.
      phase: the phase.
      variables: those of the frozen units, on the devices.
      cache: filled in place.

    Yields:
      The number of rows that are still missing, after each batch.

    Raises:
      RunError: an output that the cache's type cannot hold.
    """
    model, plan, feed, partition = run.model, cache.plan, phase.feed, run.partition
    augment = phase.make_augment(model.num_classes)
    # Brought together once: pieces of a sharded trunk would be gathered anew for every batch.
    variables = jax.jit(lambda tree: tree, out_shardings=partition.replicated)(variables)
    batch_size, rows, met = feed.eval_batch_size, run.rows(feed.eval_batch_size), run.skipped.met

    def with_outputs(trunk: Variables, batch: Batch, images: jax.Array) -> Batch:
        result: Any = model.apply(trunk, images, last=plan.cut, method="run")
        kept = (pool(result, model.pooling) if plan.cut == "top" else result).astype(plan.dtype)
        return {"outputs": kept, "label": batch["label"], "index": batch["index"]}

    def of_view(given: tuple[Variables, jax.Array, jax.Array], batch: Batch) -> Batch:
        trunk, seed, view = given
        return with_outputs(trunk, batch, augment(batch, example_keys(seed, PURPOSE_AUGMENT, view, batch["index"]))[0])

    def of_evaluation(trunk: Variables, batch: Batch) -> Batch:
        images = batch["image"]
        images = resize_on_device(images, phase.resolution) if images.dtype == jnp.uint8 else images
        index = jnp.where(batch["mask"] > 0, batch["index"], -1)
        return with_outputs(trunk, {**batch, "index": index}, images)

    def keep(split: str, end: int, result: Batch) -> None:
        """Writes a batch's outputs after those that are there, up to `end`, where the split or its view ends."""
        start = cache.done[split]
        written = np.arange(start, min(start + batch_size, end))
        batch = {name: np.asarray(value)[: len(written)] for name, value in result.items()}
        outputs = batch.pop("outputs")
        if not np.isfinite(outputs).all():
            raise RunError(
                f"an output of {plan.cut} is no number in {plan.dtype}: set cache_dtype='float32' or 'bfloat16'; "
                "where that fails too, the weights are damaged. Give another --workdir, since the config differs"
            )
        cache.write(split, written, outputs, batch)

    def placed(batches: Batches) -> Iterator[Batch]:
        with contextlib.closing(batches):
            yield from prefetch(batches, partition.place_batch)

    # Validation first: it is small, and an image that cannot be read is told early.
    if cache.done.get("validation", 0) < plan.rows.get("validation", 0):
        evaluated = partition.compile_rows(of_evaluation)
        for batch in placed(feed.evaluating(run.sources["validation"], batch_size, rows, met["validation"])):
            keep("validation", plan.images["validation"], evaluated(variables, batch))
            yield cache.missing
    viewed = partition.compile_rows(of_view)
    count = plan.images["train"]
    while cache.done["train"] < plan.rows["train"]:
        view, position = divmod(cache.done["train"], count)
        for batch in placed(feed.in_order(run.sources["train"], batch_size, position, rows, met["train"])):
            keep("train", (view + 1) * count, viewed((variables, jnp.int32(feed.seed), jnp.int32(view)), batch))
            yield cache.missing
