"""Batches, brought into memory in time.

What a step shows follows from `order`; a process takes the rows of the global batch that its devices hold. So nothing
depends on the number of processes, workers or threads, and a resume needs no more than `start_step`.

A batch is filled in chunks of examples, by as many threads or worker processes as there are cores, or as the config
says, however large a batch is. How far they go ahead is bounded in bytes.
"""

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

from effnet_jax.choices import EVALUATIONS
from effnet_jax.data.decoders import Decoders, layout_bytes
from effnet_jax.data.examples import EvaluationExamples, Examples, TrainingExamples
from effnet_jax.data.order import BalancedOrder, part_of_step, step_epochs, step_indices
from effnet_jax.data.sources.base import ArraySource, Source
from effnet_jax.data.squares import SquareCache, Squares
from effnet_jax.data.view import EvaluationView
from effnet_jax.errors import ConfigError, nearest

Batch = dict[str, np.ndarray]
Batches = Generator[Batch, None, None]  # close() ends its threads or worker processes
BadImages = list[dict[str, str]]  # what was skipped: its `id` and `error`

_BUFFER_BYTES = 2**29  # of batches that are filled before they are asked for; one at least, and no more than …
_BUFFER_BATCHES = 16
# Starting worker processes takes a while, which an evaluation of a smaller set of photographs does not win back.
_EVALUATION_IN_WORKERS = 10_000


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
    part: tuple[int, int] | None = None,
    balanced: BalancedOrder | None = None,
    squares: SquareCache | None = None,
    bad: BadImages | None = None,
) -> Batches:
    """Endless training batches of this process, from `start_step` on.

    Small images in memory are gathered. Photographs are decoded and squeezed to squares, by threads, or by `workers`
    processes where there are any; squares that a cache has room for are kept, and decoded by threads. The batches are
    the same in every case.

    With `source.on_bad_image` `"skip"`, an image that cannot be decoded is replaced by the next one of the source
    that can, which is as fixed as everything else.

    Args:
      source: what to train on.
      batch_size: of the global batch, over all processes.
      seed: of the order, not negative.
      start_step: the first step to give.
      workers: processes that decode; 0: threads of this process.
      size: side of the squares of photographs (`square_size`).
      rows: positions in the global batch that this process takes; None: all.
      part: (number of this host, how many there are), where each shuffles a part of its own (`order.part_of_step`);
        None: the batch is that of all examples.
      balanced: has all classes come equally often; None: each image does. Not with `part`.
      squares: keeps them; None: nothing is kept.
      bad: what is skipped is added here.

    Returns:
      An iterator of dicts: `image` uint8 [B, S, S, 3] (small images: [B, h, w, 3]), `aspect` float32 [B] (width /
      height of the photograph before it was squeezed; 1 for small images), `label` int32 [B], `index` int32 [B]
      (position in the source), `epoch` int32 [B] (that the example is shown in, from 0; in a balanced order that of
      its class), with B the number of `rows`. It raises DataError for an image that cannot be decoded, and where a
      worker is gone.
    """
    rows = np.arange(batch_size) if rows is None else rows
    place: Place = functools.partial(_shuffled, batch_size=batch_size, seed=seed, count=len(source), rows=rows)
    if balanced:
        place = functools.partial(_balanced, order=balanced, batch_size=batch_size, rows=rows)
    elif part:
        number, parts = part
        place = functools.partial(part_of_step, rows=len(rows), seed=seed, count=len(source), part=number, parts=parts)
    kept = squares.of(source, size, part or (0, 1)) if squares else None
    return _training(source, itertools.count(start_step), place, workers, size, kept, bad)


def ordered_batches(
    source: Source,
    *,
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    size: int = 256,
    rows: np.ndarray | None = None,
    squares: SquareCache | None = None,
    bad: BadImages | None = None,
) -> Batches:
    """Every example once and in order, from position `start` on, in the form of training batches.

    The last batch begins anew with the first examples. Unlike `index`, the order of the rows does not change where an
    image is skipped. Arguments and results are those of `train_batches`.
    """
    rows = np.arange(batch_size) if rows is None else rows
    place = functools.partial(_in_order, batch_size=batch_size, start=start, count=len(source), rows=rows)
    steps = range(-(-(len(source) - start) // batch_size))
    kept = squares.of(source, size) if squares else None
    return _training(source, steps, place, workers, size, kept, bad)


Place = Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> positions in the source and epochs, [B] each


def _shuffled(step: int, *, batch_size: int, seed: int, count: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    indices = step_indices(step, batch_size=batch_size, seed=seed, count=count)
    return indices[rows], step_epochs(step, batch_size=batch_size, count=count)[rows]


def _balanced(step: int, *, order: BalancedOrder, batch_size: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return order.at(step * batch_size + rows)


def _in_order(step: int, *, batch_size: int, start: int, count: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (start + step * batch_size + rows) % count, np.zeros(len(rows), np.int32)


def _training(
    source: Source,
    steps: Iterable[int],
    place: Place,
    workers: int,
    size: int,
    kept: Squares | None,
    bad: BadImages | None,
) -> Batches:
    def positions() -> Iterator[tuple[np.ndarray, Batch]]:
        for step in steps:
            indices, epochs = place(step)
            yield indices, {"epoch": epochs}

    return _filled(TrainingExamples(source, size), positions(), 0 if kept else workers, bad, kept)


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
    resize: str = "bicubic",
    workers: int = 0,
    rows: np.ndarray | None = None,
    bad: BadImages | None = None,
) -> Batches:
    """Evaluation batches of this process: every example exactly once, in order, the last batch padded.

    All processes get the same number of batches of the same shape, also where there are fewer examples than a global
    batch holds. With `source.on_bad_image` `"skip"`, an image that cannot be decoded gets mask 0.

    Args:
      source: what to evaluate.
      batch_size: of the global batch, over all processes.
      resolution: of the model.
      crop: the weights' crop rule (`preprocess.crop_window`).
      evaluation: `"crop"`: a centre square, resized on the host; `"resize"`: no crop: photographs are resized as a
        whole on the host, small images are given as they are, for the device to resize; `"auto"`: `resize` for small
        images, `crop` for photographs.
      resize: how the host does it (`EvaluationView`).
      workers: processes that decode a large set of photographs; 0: threads of this process.
      rows: positions in the global batch that this process takes; None: all.
      bad: what is skipped is added here.

    Returns:
      An iterator of dicts: `image` (float32 [B, R, R, 3] in 0..255; uint8 [B, h, w, 3] for small images to be
      resized), `label` int32 [B], `index` int32 [B] (-1: padding), `mask` float32 [B] (0: padding).

    Raises:
      ConfigError: an unknown `evaluation`.
    """
    rule = evaluation_rule(source, evaluation)
    rows = np.arange(batch_size) if rows is None else rows
    native = rule == "resize" and source.fixed_shape is not None
    examples = EvaluationExamples(source, None if native else EvaluationView(resolution, rule, crop, resize))

    def positions() -> Iterator[tuple[np.ndarray, Batch]]:
        for step in range(evaluation_steps(len(source), batch_size)):
            asked = step * batch_size + rows
            yield np.where(asked < len(source), asked, -1), {}

    return _filled(examples, positions(), workers if len(source) >= _EVALUATION_IN_WORKERS else 0, bad)


def _filled(
    examples: Examples,
    steps: Iterator[tuple[np.ndarray, Batch]],
    workers: int,
    bad: BadImages | None,
    squares: Squares | None = None,
) -> Batches:
    """Fills batches ahead of their use. `steps` gives positions in the source, and what a batch has besides."""
    source = examples.source
    if isinstance(source, ArraySource) and source.fixed_shape is not None and isinstance(examples, TrainingExamples):
        kinds = examples.fields
        for positions, others in steps:  # a gather needs no help
            arrays = {name: np.empty((len(positions), *shape), dtype) for name, (shape, dtype) in kinds.items()}
            examples.fill(positions, arrays)
            yield {**arrays, **others}
        return
    if isinstance(source, ArraySource):
        workers = 0  # each would get all of the array
    bad = [] if bad is None else bad
    listed = {entry["id"] for entry in bad}
    waiting: collections.deque[Any] = collections.deque()
    with contextlib.closing(Decoders(examples, workers=workers, squares=squares)) as decoders:

        def taken() -> Batch:
            rows, others = waiting.popleft()
            for name, error in rows.wait():
                if name not in listed:
                    listed.add(name)
                    bad.append({"id": name, "error": error})
            return {**rows.arrays, **others}

        for positions, others in steps:
            waiting.append((decoders.fill(positions), others))
            size = layout_bytes(examples.fields, len(positions))
            if len(waiting) > min(max(1, _BUFFER_BYTES // size), _BUFFER_BATCHES):
                yield taken()
        while waiting:
            yield taken()


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
