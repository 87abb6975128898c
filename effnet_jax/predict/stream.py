"""Inputs → one result each, in order: drawn and decoded ahead of the devices, which work ahead of the reader."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from effnet_jax.data.decoders import Decoders, Rows
from effnet_jax.predict.buckets import bucket
from effnet_jax.predict.inputs import Drawn, ViewedImages, draw

_DECODING = 3  # batches that are decoded ahead of the one that the devices get next
_COMPUTING = 2  # batches that the devices have waiting


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one image.

    Attributes:
      values: float32 [classes] or [features]; None where the image could not be read.
      error: why it could not, else "".
    """

    values: np.ndarray | None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class _Batch:
    rows: Rows
    count: int  # of its rows that are no padding


def stream_batches(
    images: Iterable[Any],
    viewed: ViewedImages,
    compute: Callable[[np.ndarray], jax.Array],
    sizes: tuple[int, ...],
    *,
    workers: int = 0,
) -> Iterator[list[Result]]:
    """Yields the results of the images, in order, as many at a time as the largest size.

    Which images share a batch follows from their positions alone: one that cannot be read leaves its row empty.

    Args:
      images: what `inputs.draw` takes; may be endless. No more of them are drawn than five batches before their use.
      viewed: what fills rows.
      compute: gives a batch [B, R, R, 3] to the devices and does not wait, → [B, …].
      sizes: of the batches that are compiled.
      workers: processes that decode; 0: threads of this one.
    """
    source = iter(images)
    decoders = Decoders(viewed, workers=workers)
    decoding: collections.deque[_Batch] = collections.deque()
    computing: collections.deque[tuple[jax.Array, _Batch, dict[int, str]]] = collections.deque()

    def give(batch: _Batch) -> None:
        bad = dict(batch.rows.wait())
        computing.append((compute(batch.rows.arrays["image"]), batch, bad))

    def take() -> list[Result]:
        outputs, batch, bad = computing.popleft()
        values = np.asarray(outputs)
        return [Result(None, bad[row]) if row in bad else Result(values[row]) for row in range(batch.count)]

    try:
        for start in itertools.count(0, sizes[-1]):
            drawn, failure = _draw(source, start, sizes[-1])
            if drawn:
                size = bucket(len(drawn), sizes)
                rows = list(enumerate([*drawn, *[None] * (size - len(drawn))]))
                decoding.append(_Batch(decoders.fill(rows), len(drawn)))
            last = failure is not None or len(drawn) < sizes[-1]
            while decoding and (last or len(decoding) > _DECODING):
                give(decoding.popleft())
                if len(computing) > _COMPUTING:
                    yield take()
            if last:
                while computing:
                    yield take()
                if failure is not None:
                    raise failure
                return
    finally:
        decoders.close()


def _draw(source: Iterator[Any], start: int, count: int) -> tuple[list[Drawn], Exception | None]:
    """Draws up to `count` images. What the source raises is kept until the results of those before it are out."""
    drawn: list[Drawn] = []
    try:
        for number, image in enumerate(itertools.islice(source, count), start):
            drawn.append(draw(image, number))
    except Exception as error:
        return drawn, error
    return drawn, None
