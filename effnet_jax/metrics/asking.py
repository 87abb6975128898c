"""Asks a model about batches of examples, without having the devices wait for what reads the answers."""

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from effnet_jax import hosts
from effnet_jax.data.loader import BadImages, Batches, prefetch

_AHEAD = 4  # batches that the devices may have waiting


def answer_rows(
    step: Callable[..., Any],
    values: tuple[Any, Any],
    batches: Batches,
    place: Callable[[dict[str, np.ndarray]], Any],
    classes: np.ndarray | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of each batch some batches after it was given to the devices, so that these never wait.

    Args:
      step: compiled, of `make_answer_step`.
      values: variables on the devices, and the temperature.
      batches: of this process, from `eval_batches`. Closed at the end.
      place: brings a batch of this process onto the devices.
      classes: the model's class of each label; None: the same.
      tell: hears before each batch how many examples are done.
    """
    waiting: collections.deque[Any] = collections.deque()
    done = 0

    def placed(batch: dict[str, np.ndarray]) -> Any:
        if classes is not None:
            batch = {**batch, "label": classes[np.maximum(batch["label"], 0)].astype(np.int32)}
        return place(batch)

    with contextlib.closing(batches):
        for batch in prefetch(batches, placed):
            tell(done)
            waiting.append(step(values, batch))
            done += batch["label"].shape[0]
            while len(waiting) > _AHEAD:
                yield jax.device_get(waiting.popleft())
        while waiting:
            yield jax.device_get(waiting.popleft())


def skipped_by_all(met: BadImages) -> BadImages:
    """Returns the images that any of the processes could not read, each once. All of them call it together.

    Args:
      met: those of this process, which answers only a part of each batch.
    """
    entries = (entry for of in hosts.gather("images that could not be read", met) for entry in of)
    return list({entry["id"]: entry for entry in entries}.values())
