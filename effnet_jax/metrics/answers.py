"""What a model answers to each example of a split, next to what it should have answered."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from effnet_jax.metrics.calibration import TEMPERATURES

TOP = 5  # answers that are kept of an example


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to N examples, in the order of the split. Examples that could not be read are left out.

    Attributes:
      index: position in the split, int64 [N].
      label: the right class, int64 [N].
      top: the likeliest classes, the likeliest first, int64 [N, K] with K = min(5, classes).
      probability: of each of them, float32 [N, K].
      untempered: probability of the likeliest at temperature 1, float32 [N].
      label_probability: of the right class, float32 [N].
      loss: cross entropy in nats, float32 [N].
      tempered: summed loss at each of `calibration.TEMPERATURES`, of even and of odd positions, float64 [2, T].
      classes: how many the model tells apart.
    """

    index: np.ndarray
    label: np.ndarray
    top: np.ndarray
    probability: np.ndarray
    untempered: np.ndarray
    label_probability: np.ndarray
    loss: np.ndarray
    tempered: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def correct(self) -> np.ndarray:
        """Whether the likeliest class is the right one, bool [N]."""
        return self.top[:, 0] == self.label


def make_answer_step(logits_of: Callable[[Any, Any], jax.Array]) -> Callable[..., Any]:
    """Makes ((variables, temperature), batch) → rows of `Answers`, an array of [B, …] each.

    A batch has `image`, `label`, `index` and `mask`. `tempered` counts from the temperature that is given.

    Args:
      logits_of: (variables, batch) → logits [B, classes].
    """

    def step(values: tuple[Any, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        variables, temperature = values
        plain = logits_of(variables, batch).astype(jnp.float32)
        logits = plain / temperature
        label = jnp.clip(batch["label"], 0, logits.shape[1] - 1)  # of padding it may be anything
        shares = jax.nn.softmax(logits)
        probability, top = jax.lax.top_k(shares, min(TOP, logits.shape[1]))
        loss = optax.softmax_cross_entropy_with_integer_labels

        return {
            "index": jnp.where(batch["mask"] > 0, batch["index"], -1),
            "label": batch["label"],
            "top": top,
            "probability": probability,
            "untempered": jnp.max(jax.nn.softmax(plain), -1),
            "label_probability": jnp.take_along_axis(shares, label[:, None], 1)[:, 0],
            "loss": loss(logits, label),
            # One after the other: all at once would be as many copies of the logits.
            "tempered": jax.lax.map(lambda t: loss(logits / t, label), jnp.asarray(TEMPERATURES)).T,
        }

    return step


def gather_answers(rows: Iterable[Mapping[str, Any]], classes: int) -> Answers:
    """Puts the rows of all batches together, without padding and what could not be read.

    Args:
      rows: of batches, from a step of `make_answer_step`, as NumPy arrays.
      classes: how many the model tells apart.
    """
    kept: dict[str, list[np.ndarray]] = {}
    tempered = np.zeros((2, len(TEMPERATURES)))
    for batch in rows:
        there = np.asarray(batch["index"]) >= 0
        values = {name: np.asarray(value)[there] for name, value in batch.items()}
        losses = values.pop("tempered").astype(np.float64)
        for odd in (0, 1):
            tempered[odd] += losses[values["index"] % 2 == odd].sum(0)
        for name, value in values.items():
            kept.setdefault(name, []).append(value)
    width = min(TOP, classes)
    empty: dict[str, np.ndarray] = {"top": np.zeros((0, width)), "probability": np.zeros((0, width), np.float32)}
    joined = {
        name: np.concatenate([empty.get(name, np.zeros(0)).astype(dtype), *kept.get(name, [])]).astype(dtype)
        for name, dtype in (
            ("index", np.int64),
            ("label", np.int64),
            ("top", np.int64),
            ("probability", np.float32),
            ("untempered", np.float32),
            ("label_probability", np.float32),
            ("loss", np.float32),
        )
    }
    return Answers(**joined, tempered=tempered, classes=classes)
