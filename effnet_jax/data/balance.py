"""Classes of very different size: how many images each has, and what each counts in the loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from effnet_jax.data.sources.base import Source
from effnet_jax.errors import ConfigError, DataError, nearest

SKEWED = 10  # times the images of the smallest class, from which on it is worth a word


def class_weights(asked: str | Mapping[str, float], source: Source) -> np.ndarray | None:
    """What each class counts in the training loss.

    Args:
      asked: the config's `class_weights`: `""`; `"balanced"`: in inverse proportion to a class's images; or a table of
        names, in which those that are left out count 1.
      source: the training images.

    Returns:
      float32 [classes], with a mean of 1 over the training images, so that the learning rate keeps its meaning; None
      where all count alike. A class without an image counts 1.

    Raises:
      ConfigError: a name that is no class.
      DataError: the labels cannot be known without reading all images.
    """
    if not asked:
        return None
    names = source.class_names
    counts = class_counts(source)
    if counts is None:
        raise DataError(
            f"{source.name}: labels stand in its records alone, so that class_weights would have to read all of them: "
            "take an image folder, or class_weights=''"
        )
    if asked == "balanced":
        weights = counts.sum() / np.maximum(counts, 1) / np.count_nonzero(counts)
    else:
        for name in asked:
            if name not in names:
                raise ConfigError(f"class_weights names {name!r}, which is no class: {nearest(name, names)}")
        assert isinstance(asked, Mapping)
        weights = np.array([float(asked.get(name, 1.0)) for name in names])
        weights = weights * counts.sum() / max(float(weights @ counts), 1e-9)
    return np.where(counts > 0, weights, 1.0).astype(np.float32)


def class_counts(source: Source) -> np.ndarray | None:
    """The number of images of each class; None where labels are not known without reading the images."""
    if source.labels is None:
        return None
    return np.bincount(source.labels, minlength=len(source.class_names))


def words_on_balance(source: Source, asked: Any) -> list[str]:
    """What a run says of its classes' sizes: nothing where they are alike.

    Args:
      source: the training images.
      asked: the config's `class_weights`.
    """
    counts = class_counts(source)
    if counts is None or not counts.any() or counts.max() < 1.5 * max(counts.min(), 1):
        return []
    least, most = int(counts.argmin()), int(counts.argmax())
    names: Sequence[str] = source.class_names
    words = [
        f"images per class: {counts[least]:,} ({names[least]}) to {counts[most]:,} ({names[most]}), median "
        f"{np.median(counts):,.0f}"
    ]
    if counts[most] >= SKEWED * max(counts[least], 1) and not asked:
        words.append(
            "advice: the largest class has ten times the images of the smallest and more, which the loss follows: "
            "class_weights='balanced' has all classes count alike"
        )
    return words
