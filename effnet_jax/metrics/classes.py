"""Which class of a model each class of a data set is."""

import difflib
import importlib.resources
from collections.abc import Sequence

import numpy as np

from effnet_jax.errors import DataError
from effnet_jax.weights.metadata import Metadata

_SHOWN = 5


def match_classes(metadata: Metadata, names: Sequence[str], where: str) -> np.ndarray:
    """Finds the classes of a data set among those of a model.

    They are the same by name; or WordNet ids, as ImageNet's folders are called, of a model of ImageNet's 1000 classes;
    or, where the weights have no names, by number where there are equally many. A data set may have fewer of them.

    Args:
      metadata: of the weights.
      names: of the data set's classes.
      where: what messages call the data set.

    Returns:
      The model's class of each, int64 [len(names)].

    Raises:
      DataError: classes that the model does not know.
    """
    known = metadata.class_names
    if metadata.num_classes in (1000, 1001) and _are_wordnet(names):
        ids = wordnet_ids(metadata.num_classes)
        if set(names) <= set(ids) and not set(names) <= set(known):
            known = ids
    if not known:
        if len(names) == metadata.num_classes:
            return np.arange(len(names))
        raise DataError(
            f"{where} has {len(names)} classes, the weights tell {metadata.num_classes} apart and do not say which: "
            "give a data set of as many, or export the weights with --class_names FILE"
        )
    unknown = [name for name in names if name not in set(known)]
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:_SHOWN]) + ", …" * (len(unknown) > _SHOWN)
        near = difflib.get_close_matches(unknown[0], known, 3)
        hint = (
            f"near {unknown[0]!r}: {', '.join(map(repr, near))}" if near else f"it knows {', '.join(known[:_SHOWN])}, …"
        )
        raise DataError(
            f"{where} has classes that the weights do not know: {shown} ({len(unknown)} of {len(names)}; {hint}): "
            "give data of the classes that they were trained on"
        )
    places = {name: index for index, name in reversed(list(enumerate(known)))}
    return np.array([places[name] for name in names])


def wordnet_ids(num_classes: int) -> tuple[str, ...]:
    """Returns the WordNet ids of ImageNet's classes, in the order of the published classifiers.

    Args:
      num_classes: 1000, or 1001 with `background` first.
    """
    text = importlib.resources.files("effnet_jax.weights").joinpath("imagenet_ids.txt").read_text("ascii")
    return ("background",) * (num_classes - 1000) + tuple(text.split())


def _are_wordnet(names: Sequence[str]) -> bool:
    return all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in names)
