"""Batches: which examples belong to a step, and how they are brought into memory in time.

The global batch of step t is a pure function of (seed, t): the examples are laid out as one endless sequence,
shuffled anew in each epoch, and step t takes the `batch_size` positions from `t * batch_size` on, across an epoch's
end where they do not divide. A process takes the rows of it that its devices hold. So nothing depends on the number of
processes, workers or threads, and a resume needs no more than `start_step`.
"""

import collections
import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from effnet_jax.choices import EVALUATIONS
from effnet_jax.data.examples import evaluation_batch, training_batch
from effnet_jax.data.sources.base import ArraySource, Source
from effnet_jax.errors import ConfigError, DataError, nearest

Batch = dict[str, np.ndarray]
Batches = Generator[Batch, None, None]  # close() ends its threads or worker processes

_ENDLESS = 2**40  # steps
_MAX_THREADS = 8
_BUFFER_BYTES = 2**29  # of batches that are ready before they are asked for
# Starting worker processes takes seconds, which an evaluation of a smaller set of photographs does not win back.
_EVALUATION_IN_WORKERS = 10_000


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of one epoch.

    Sorting the raw words of a counter-based generator, whose output NumPy guarantees never to change, where the
    streams of `Generator.permutation` may change with its version.

    Args:
      seed: of the run.
      epoch: from 0.
      count: how many examples there are.

    Returns:
      A permutation of 0..count-1, int64 [count]; not to be written to.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)
    return order


def step_indices(step: int, *, batch_size: int, seed: int, count: int) -> np.ndarray:
    """The examples of one step's global batch.

    Args:
      step: from 0.
      batch_size: of the global batch.
      seed: of the run.
      count: how many examples there are.

    Returns:
      Positions in the source, int64 [batch_size].
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    indices = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        indices[here] = epoch_order(seed, epoch, count)[positions[here] - epoch * count]
    return indices


def step_epochs(step: int, *, batch_size: int, count: int) -> np.ndarray:
    """The epoch, from 0, that each example of one step's global batch belongs to: int32 [batch_size]."""
    return (np.arange(step * batch_size, (step + 1) * batch_size) // count).astype(np.int32)


def square_size(resolution: int, size: int = 0) -> int:
    """The side of the squares that photographs are brought to for training.

    Args:
      resolution: what the model is trained at.
      size: `data.size`; 0 takes 8/7 of the resolution, so that crops of three quarters of the area lose no detail.

    Returns:
      The side in pixels.
    """
    return size or round(resolution * 8 / 7)


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    size: int = 256,
    rows: np.ndarray | None = None,
    cache_gib: float = 1.0,
) -> Batches:
    """Endless training batches of this process, from `start_step` on.

    Small images in memory are gathered. Photographs are decoded and squeezed to squares by threads, and kept in
    memory when the whole source fits into `cache_gib`; a source that does not fit is decoded by `workers` processes
    where there are any. The batches are the same in every case.

    With `source.on_bad_image` `"skip"`, an image that cannot be decoded is replaced by the next one of the source
    that can (which is as fixed as everything else), and listed in `source.bad`.

    Args:
      source: what to train on.
      batch_size: of the global batch, over all processes.
      seed: of the order, not negative.
      start_step: the first step to give.
      workers: processes that decode photographs; 0: threads of this process.
      size: side of the squares of photographs (`square_size`).
      rows: positions in the global batch that this process takes; None: all.
      cache_gib: bound of the memory for decoded photographs, in GiB.

    Returns:
      An iterator of dicts: `image` uint8 [B, S, S, 3] (small images: [B, h, w, 3]), `aspect` float32 [B] (width /
      height of the photograph before it was squeezed; 1 for small images), `label` int32 [B], `index` int32 [B]
      (position in the source), `epoch` int32 [B] (that the example is shown in, from 0), with B the number of
      `rows`. It raises DataError for an image that cannot be decoded.
    """
    rows = np.arange(batch_size) if rows is None else rows
    place = functools.partial(_shuffled, batch_size=batch_size, seed=seed, count=len(source), rows=rows)
    steps = range(start_step, start_step + _ENDLESS)
    return _training(source, steps, place, len(rows), workers=workers, size=size, cache_gib=cache_gib)


def ordered_batches(
    source: Source,
    *,
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    size: int = 256,
    rows: np.ndarray | None = None,
    cache_gib: float = 1.0,
) -> Batches:
    """Every example once and in order, from position `start` on, in the form of training batches.

    The last batch begins anew with the first examples. Unlike `index`, the order of the rows does not change where an
    image is skipped. Arguments and results are those of `train_batches`.
    """
    rows = np.arange(batch_size) if rows is None else rows
    place = functools.partial(_in_order, batch_size=batch_size, start=start, count=len(source), rows=rows)
    steps = range(-(-(len(source) - start) // batch_size))
    return _training(source, steps, place, len(rows), workers=workers, size=size, cache_gib=cache_gib)


Place = Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> positions in the source and epochs, [B] each


def _shuffled(step: int, *, batch_size: int, seed: int, count: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    indices = step_indices(step, batch_size=batch_size, seed=seed, count=count)
    return indices[rows], step_epochs(step, batch_size=batch_size, count=count)[rows]


def _in_order(step: int, *, batch_size: int, start: int, count: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (start + step * batch_size + rows) % count, np.zeros(len(rows), np.int32)


def _training(
    source: Source, steps: range, place: Place, rows: int, *, workers: int, size: int, cache_gib: float
) -> Batches:
    in_memory = isinstance(source, ArraySource) and source.fixed_shape is not None
    cached = not in_memory and len(source) * size * size * 3 <= cache_gib * 2**30
    if cached:
        source.squares = {size: source.squares.get(size, {})}  # squares of another size have had their time
    make = functools.partial(_train_step, source=source, place=place, size=size, cached=cached)
    batches = grain.MapDataset.range(steps.start, steps.stop).map(make)
    batch_bytes = rows * size * size * 3
    return _run(batches, source, inline=in_memory, workers=0 if cached else workers, batch_bytes=batch_bytes)


def _train_step(step: int, *, source: Source, place: Place, size: int, cached: bool) -> dict[str, Any]:
    indices, epochs = place(int(step))
    return _guarded(lambda: {**training_batch(source, indices, size, cached=cached), "epoch": epochs})


def evaluation_steps(count: int, batch_size: int) -> int:
    """How many batches `eval_batches` gives: the same on every process."""
    return -(-count // batch_size)


def evaluation_rule(source: Source, evaluation: str = "auto") -> str:
    """How a source is evaluated.

    Args:
      source: what is evaluated.
      evaluation: `"crop"`, `"resize"` or `"auto"`, which is `resize` for small images and `crop` for photographs.

    Returns:
      `"crop"` or `"resize"`.

    Raises:
      ConfigError: an unknown `evaluation`.
    """
    if evaluation not in EVALUATIONS:
        raise ConfigError(f"data.evaluation is {evaluation!r}: {nearest(evaluation, EVALUATIONS)}")
    if evaluation != "auto":
        return evaluation
    return "resize" if source.fixed_shape is not None else "crop"


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    resolution: int,
    crop: str,
    evaluation: str = "auto",
    workers: int = 0,
    rows: np.ndarray | None = None,
) -> Batches:
    """Evaluation batches of this process: every example exactly once, in order, the last batch padded.

    All processes get the same number of batches of the same shape, also where there are fewer examples than a global
    batch holds. With `source.on_bad_image` `"skip"`, an image that cannot be decoded gets mask 0 and is listed in
    `source.bad`.

    Args:
      source: what to evaluate.
      batch_size: of the global batch, over all processes.
      resolution: of the model.
      crop: the weights' crop rule (`preprocess.crop_window`).
      evaluation: `"crop"`: the original's crop and TF1 bicubic, on the host; `"resize"`: no crop: photographs are
        resized as a whole by TF1 bicubic on the host, small images are given as they are, for the device to resize;
        `"auto"`: `resize` for small images, `crop` for photographs.
      workers: processes that decode a large set of photographs; 0: threads of this process.
      rows: positions in the global batch that this process takes; None: all.

    Returns:
      An iterator of dicts: `image` (float32 [B, R, R, 3] in 0..255; uint8 [B, h, w, 3] for small images to be
      resized), `label` int32 [B], `index` int32 [B] (-1: padding), `mask` float32 [B] (0: padding).

    Raises:
      ConfigError: an unknown `evaluation`.
    """
    rule = evaluation_rule(source, evaluation)
    rows = np.arange(batch_size) if rows is None else rows
    native = rule == "resize" and source.fixed_shape is not None
    make = functools.partial(
        _evaluation_step,
        source=source,
        batch_size=batch_size,
        rows=rows,
        resolution=resolution,
        crop=crop if rule == "crop" else None,
        native=native,
    )
    steps = grain.MapDataset.range(evaluation_steps(len(source), batch_size))
    return _run(
        steps.map(make),
        source,
        inline=native and isinstance(source, ArraySource),
        workers=workers if len(source) >= _EVALUATION_IN_WORKERS else 0,
        batch_bytes=len(rows) * resolution * resolution * 12,
    )


def _evaluation_step(
    step: int, *, source: Source, batch_size: int, rows: np.ndarray, resolution: int, crop: str | None, native: bool
) -> dict[str, Any]:
    positions = int(step) * batch_size + rows
    positions[positions >= len(source)] = -1
    return _guarded(lambda: evaluation_batch(source, positions, None if native else resolution, crop))


def _guarded(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    # An error travels as data: it comes out at its own step, and whole from a worker process too.
    try:
        return make()
    except DataError as error:
        return {"error": str(error)}


def _run(batches: grain.MapDataset, source: Source, *, inline: bool, workers: int, batch_bytes: int) -> Batches:
    """Computes the batches ahead: in this thread (a gather needs no more), in threads, or in worker processes."""
    ahead = max(1, _BUFFER_BYTES // max(1, batch_bytes))
    if inline:
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    elif workers:
        if not flags.FLAGS.is_parsed():  # grain reads absl flags, which nobody parses in a notebook or a test
            flags.FLAGS.mark_as_parsed()
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=min(2, ahead))
        dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
    else:
        threads = min(os.cpu_count() or 1, _MAX_THREADS, ahead)
        dataset = batches.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=min(2 * threads, ahead)))
    return _checked(dataset, source, shared_memory=workers > 0 and not inline)


def _start_worker(index: int, count: int) -> None:
    # A worker decodes images; should anything in it ask for a device, it must not take the accelerator.
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"


def _checked(dataset: grain.IterDataset, source: Source, *, shared_memory: bool) -> Batches:
    iterator = iter(dataset)
    listed = {entry["id"] for entry in source.bad}
    try:
        for batch in iterator:
            if "error" in batch:
                raise DataError(str(batch["error"]))
            for name, error in batch.pop("bad"):
                if name not in listed:
                    listed.add(name)
                    source.bad.append({"id": name, "error": error})
            # Copies: arrays from a worker live in shared memory, which is to be given back soon.
            yield {key: np.array(value) if shared_memory else value for key, value in batch.items()}
    finally:
        if hasattr(iterator, "close"):
            iterator.close()  # ends worker processes now and not at some garbage collection


def prefetch(batches: Iterable[Batch], put: Callable[[Batch], Any], depth: int = 2) -> Iterator[Any]:
    """Puts batches onto the device ahead of their use, so that the copy runs beside the computation.

    Args:
      batches: from `train_batches` or `eval_batches`.
      put: copies a batch to the device without waiting, as `jax.device_put` does.
      depth: how many batches are on the device at a time.

    Yields:
      What `put` returns for each batch, in order.
    """
    ready: collections.deque[Any] = collections.deque()
    for batch in batches:
        ready.append(put(batch))
        if len(ready) >= depth:
            yield ready.popleft()
    while ready:
        yield ready.popleft()
