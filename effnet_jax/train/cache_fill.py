"""Filling a trunk cache: once at the begin of a phase, and again after a resume where it was in memory."""

import dataclasses
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax import __version__
from effnet_jax.data.augment import make_augment, resize_on_device
from effnet_jax.data.loader import Batches, eval_batches, ordered_batches, prefetch, square_size
from effnet_jax.data.sources.base import Source
from effnet_jax.errors import RunError
from effnet_jax.model.efficientnet import EfficientNet, pool
from effnet_jax.train.cache_plan import cache_key, trunk_hash, trunk_variables
from effnet_jax.train.config_checks import augment_settings
from effnet_jax.train.meter import duration
from effnet_jax.train.partition import make_partition
from effnet_jax.train.report import Report
from effnet_jax.train.setup import Phase
from effnet_jax.train.state import Variables
from effnet_jax.train.steps import PURPOSE_AUGMENT, Augment, Batch, example_keys
from effnet_jax.train.trunk_cache import TrunkCache, open_cache

_SECONDS_TO_ESTIMATE = 5.0
_ROWS_BETWEEN_RECORDS = 4096


def prepare_cache(
    config: Mapping[str, Any],
    phase: Phase,
    model: EfficientNet,
    variables: Variables,
    sources: Mapping[str, Source],
    *,
    crop: str,
    workdir: Path,
    report: Report,
    stopped: Callable[[], str | None],
    after_batch: Callable[[], None],
    averages: Variables | None = None,
) -> TrunkCache | None:
    """Opens the cache of a phase and fills it, telling what it costs.

    Args:
      config: of the run.
      phase: the phase.
      model: of the run.
      variables: at the phase's begin; its frozen units count.
      sources: by split.
      crop: the evaluation's crop rule.
      workdir: the run dir; a cache on disk lies in it, in a folder for each process.
      report: to tell.
      stopped: gives the signal that asks to stop, once it came; then the cache is left as it is.
      after_batch: called after each batch, before it is recorded as done.
      averages: moving averages, where the run keeps them. Where their frozen units are others, by a phase before, the
        validation split is evaluated without the cache and not kept.

    Returns:
      The cache, full unless a signal came; None where the phase has none.

    Raises:
      DiskError: there is too little room.
      RunError: an output that the cache's type cannot hold.
      DataError: an image that cannot be decoded.
    """
    if phase.cache is None:
        return None
    plan, settings = phase.cache, augment_settings(config, phase.keys)
    size = square_size(phase.resolution, config["data"]["size"])
    about = {
        "version": __version__,
        "variant": config["variant"],
        "normalization": model.normalization,
        "dtype": config["dtype"],
        "seed": config["seed"],
        "resolution": phase.resolution,
        "size": size,
        "evaluation": [config["data"]["evaluation"], crop],
        "augment": {name: value for name, value in settings.items() if name != "label_smoothing"},
    }
    trunk = trunk_hash(plan, variables)
    if averages is not None and trunk_hash(plan, averages) != trunk:
        plan = dataclasses.replace(plan, images={"train": plan.images["train"]})
    folder = cache_folder(workdir)
    place = "in memory" if plan.place == "memory" else f"in {folder}"
    report.say(f"trunk cache: {plan}, {place} (budget {plan.gib:g} GiB)")
    # The key reads every image, and only a cache on disk can be an old one.
    key = cache_key(plan, about, trunk, sources) if plan.place == "disk" else ""
    cache = open_cache(plan, key, folder)
    workers = config["data"]["workers"]
    # Each process computes all of it, on its own devices.
    batch_size = (config["eval_batch_size"] or config["batch_size"]) // jax.process_count()
    fill = fill_cache(
        cache,
        model,
        variables,
        train=lambda start: ordered_batches(
            sources["train"],
            batch_size=batch_size,
            start=start,
            size=size,
            cache_gib=config["data"]["cache_gib"],
            workers=workers,
        ),
        validation=lambda: eval_batches(
            sources["validation"],
            batch_size=batch_size,
            resolution=phase.resolution,
            crop=crop,
            evaluation=config["data"]["evaluation"],
            workers=workers,
        ),
        augment=make_augment(settings, resolution=phase.resolution, num_classes=model.num_classes),
        seed=config["seed"],
        resolution=phase.resolution,
    )
    if cache.missing:
        _run_fill(cache, fill, report, stopped, after_batch)
    return cache


def cache_folder(workdir: Path) -> Path:
    """Where this process keeps a cache on disk."""
    return workdir / f"trunk_cache_{jax.process_index()}"


def _run_fill(
    cache: TrunkCache,
    fill: Generator[int],
    report: Report,
    stopped: Callable[[], str | None],
    after_batch: Callable[[], None],
) -> None:
    """Fills, with a bar and an estimate of the time, until it is done or a signal comes."""
    total = cache.missing
    began, first, told = time.monotonic(), total, 0.0
    recorded = total
    report.start_bar("trunk cache", total)
    for missing in fill:
        if first == total:  # the first batch compiled
            began, first = time.monotonic(), missing
        taken = time.monotonic() - began
        # After some seconds, then ever more rarely: the only sign of life where there is no bar.
        if first > missing and taken > max(_SECONDS_TO_ESTIMATE, 3 * told):
            told = taken
            left = duration(taken / (first - missing) * missing)
            report.say(f"trunk cache: {1 - missing / total:.0%} done, about {left} left")
        report.advance(total - missing, "")
        after_batch()
        if recorded - missing > _ROWS_BETWEEN_RECORDS:
            cache.record()
            recorded = missing
        if stopped():
            break
    cache.record()
    report.end_bar()


def fill_cache(
    cache: TrunkCache,
    model: EfficientNet,
    variables: Variables,
    *,
    train: Callable[[int], Batches],
    validation: Callable[[], Batches],
    augment: Augment,
    seed: int,
    resolution: int,
) -> Generator[int]:
    """Computes what is missing, on the devices of this process.

    Args:
      cache: filled in place.
      model: of the run.
      variables: of the whole model.
      train: gives `loader.ordered_batches` from a position on.
      validation: gives `loader.eval_batches` of all images, whatever the number of processes.
      augment: of the phase.
      seed: of the run.
      resolution: of the phase.

    Yields:
      The number of rows that are still missing, after each batch.

    Raises:
      RunError: an output that the cache's type cannot hold.
    """
    plan, devices = cache.plan, make_partition("pjit", jax.local_devices())
    trunk = devices.place_state(trunk_variables(plan, variables))

    def outputs(trunk: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        result: Any = model.apply(trunk, images, last=plan.cut, method="run")
        kept = (pool(result, model.pooling) if plan.cut == "top" else result).astype(plan.dtype)
        return kept, jnp.all(jnp.isfinite(kept))

    @jax.jit
    def of_view(trunk: Variables, batch: Batch, seed: jax.Array, view: jax.Array) -> tuple[jax.Array, jax.Array]:
        return outputs(trunk, augment(batch, example_keys(seed, PURPOSE_AUGMENT, view, batch["index"]))[0])

    @jax.jit
    def of_evaluation(trunk: Variables, batch: Batch) -> tuple[jax.Array, jax.Array]:
        images = batch["image"]
        return outputs(trunk, resize_on_device(images, resolution) if images.dtype == jnp.uint8 else images)

    def keep(split: str, start: int, end: int, batch: dict[str, np.ndarray], result: tuple[jax.Array, Any]) -> None:
        kept, finite = result
        if not finite:
            raise RunError(
                f"an output of {plan.cut} is no number in {plan.dtype}: set cache_dtype='float32' or 'bfloat16'; "
                "where that fails too, the weights are damaged. Give another --workdir, since the config differs"
            )
        rows = np.arange(start, min(start + len(kept), end))
        cache.write(split, rows, np.asarray(kept)[: len(rows)], {name: batch[name][: len(rows)] for name in batch})

    # Validation first: it is small, and an image that cannot be read is told early.
    if cache.done.get("validation", 0) < plan.rows.get("validation", 0):
        for host, batch in prefetch(validation(), lambda batch: (batch, devices.place_batch(batch))):
            host["index"] = np.where(host["mask"] > 0, host["index"], -1)
            keep("validation", cache.done["validation"], plan.images["validation"], host, of_evaluation(trunk, batch))
            yield cache.missing
    count = plan.images["train"]
    while cache.done["train"] < plan.rows["train"]:
        view, position = divmod(cache.done["train"], count)
        batches = train(position)
        for host, batch in prefetch(batches, lambda batch: (batch, devices.place_batch(batch))):
            keep(
                "train",
                cache.done["train"],
                (view + 1) * count,
                host,
                of_view(trunk, batch, jnp.int32(seed), jnp.int32(view)),
            )
            yield cache.missing
