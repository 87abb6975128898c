"""Classes of very different size: how many images each has, what each counts in the loss, and how often it comes."""

from collections.abc import Mapping, Sequence

import numpy as np

from effnet_jax.data.order import BalancedOrder
from effnet_jax.data.sources.base import Source
from effnet_jax.errors import ConfigError, DataError, nearest

SKEWED = 10  # times the images of the smallest class, from which on it is worth a word


def class_weights(asked: str | Mapping[str, float], source: Source, sampling: str = "natural") -> np.ndarray | None:
    """What each class counts in the training loss (`steps.example_weights`).

    Args:
      asked: `""`; `"balanced"`: in inverse proportion to a class's images (N / (classes · images), as scikit-learn has
        it); or a table of names, in which those that are left out count 1.
      source: the training images.
      sampling: how they come: `"natural"` or `"balanced"`.

    Returns:
      float32 [classes], with a mean of 1 over the images as they come, so that the learning rate keeps its meaning;
      None where all count alike. A class without an image counts 1.

    Raises:
      ConfigError: a name that is no class; or all that have images count nothing.
      DataError: the labels cannot be known without reading all images.
    """
    if not asked:
        return None
    names = source.class_names
    counts = np.bincount(_labels(source, "class_weights", "class_weights=''"), minlength=len(names))
    shares = counts / counts.sum() if sampling == "natural" else (counts > 0) / np.count_nonzero(counts)
    if isinstance(asked, str):  # "balanced"
        weights = 1 / np.maximum(counts, 1)
    else:
        for name in asked:
            if name not in names:
                raise ConfigError(f"class_weights names {name!r}, which is no class: {nearest(name, names)}")
        weights = np.array([float(asked.get(name, 1.0)) for name in names])
        if not weights @ shares:
            raise ConfigError(f"class_weights is 0 for every class that {source.name} has images of: raise one of them")
    return np.where(counts > 0, weights / (weights @ shares), 1.0).astype(np.float32)


def balanced_order(seed: int, source: Source) -> BalancedOrder:
    """The order of examples in which all classes with images come equally often.

    Args:
      seed: of the run.
      source: the training images.

    Raises:
      DataError: the labels cannot be known without reading all images.
    """
    return BalancedOrder(seed, _labels(source, "sampling='balanced'", "sampling='natural'"))


def _labels(source: Source, what: str, without: str) -> np.ndarray:
    if source.labels is None:  # hundreds of gigabytes may lie between them, again at every resume
        raise DataError(
            f"{source.name}: labels stand in its records alone, so that {what} would have to read all of them: take an "
            f"image folder, or {without}"
        )
    return source.labels


def class_counts(source: Source) -> np.ndarray | None:
    """The number of images of each class; None where labels are not known without reading the images."""
    if source.labels is None:
        return None
    return np.bincount(source.labels, minlength=len(source.class_names))


def words_on_balance(source: Source, cared_for: bool) -> list[str]:
    """What a run says of its classes' sizes: nothing where they are alike.

    Args:
      source: the training images.
      cared_for: whether a phase weighs or balances them already.
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
    if counts[most] >= SKEWED * counts[counts > 0].min() and not cared_for:
        words.append(
            "advice: the largest class has ten times the images of the smallest and more, which the loss follows: "
            "class_weights='balanced' has all classes count alike, sampling='balanced' has them come equally often"
        )
    return words
