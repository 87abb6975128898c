"""What is checked before a run: classes that fit the model, splits that fit one another."""

from collections.abc import Mapping

import numpy as np

from effnet_jax.data.sources.base import Source
from effnet_jax.data.sources.dataset import Dataset
from effnet_jax.data.sources.splits import parse_split
from effnet_jax.errors import DataError

_SHOWN = 10


def check_classes(source: Source, num_classes: int) -> None:
    """Compares the data's classes with the model's.

    Args:
      source: the training source.
      num_classes: of the model's classifier.

    Raises:
      DataError: they differ; with the cure.
    """
    names = source.class_names
    if len(names) != num_classes:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise DataError(
            f"{source.name} has {len(names)} classes ({some}) and the model's classifier {num_classes}: set "
            f"num_classes to {len(names)}, or to 0 to take it from the data"
        )


def check_splits(sources: Mapping[str, Source]) -> list[str]:
    """Compares the classes of a run's splits with one another.

    Args:
      sources: by role: `train`, and `validation` and `test` where there are.

    Returns:
      Warnings for the user: classes that a split has no image of.

    Raises:
      DataError: the classes differ, there is one class only, or evaluation asks for a class that training never shows.
    """
    train, warnings = sources["train"], []
    for source in sources.values():
        if source.class_names != train.class_names:
            different = sorted(set(source.class_names) ^ set(train.class_names))
            raise DataError(f"{source.name} and {train.name} have different classes: {', '.join(different[:_SHOWN])}")
    if len(train.class_names) < 2:
        raise DataError(
            f"{train.name} has one class only, {train.class_names[0]!r}, so that nothing can be learnt: give images of "
            "others too; in a folder each class is a folder of its own"
        )
    if train.labels is not None:
        shown = set(np.unique(train.labels).tolist())
        if len(shown) < 2:
            raise DataError(
                f"{train.name} has images of one class only, {_named(sorted(shown), train.class_names)}, so that "
                "nothing can be learnt: choose another slice; if the data is sorted by class, shuffle it"
            )
        if unseen := sorted(set(range(len(train.class_names))) - shown):
            warnings.append(f"{train.name} has no image of {_named(unseen, train.class_names)}: it cannot be learnt")
    return [
        *warnings,
        *(line for role in sources if role != "train" for line in _compare_classes(train, sources[role])),
    ]


def _compare_classes(train: Source, source: Source) -> list[str]:
    if train.labels is None or source.labels is None:
        return []
    names = train.class_names
    trained, evaluated = set(np.unique(train.labels).tolist()), set(np.unique(source.labels).tolist())
    unseen = sorted(evaluated - trained)
    if unseen:
        raise DataError(
            f"{source.name} has classes of which {train.name} has no image: {_named(unseen, names)}. Add images of "
            f"them, leave them out of {source.name}, correct the spelling of a folder, or choose another slice; if the "
            "data is sorted by class, shuffle it"
        )
    missing = sorted(trained - evaluated)
    if missing:
        return [f"{source.name} has no image of {_named(missing, names)}: its accuracy says nothing about them"]
    return []


def _named(labels: list[int], names: tuple[str, ...]) -> str:
    more = f", … ({len(labels)} classes)" if len(labels) > _SHOWN else ""
    return ", ".join(names[label] for label in labels[:_SHOWN]) + more


def overlaps(dataset: Dataset, expressions: Mapping[str, str]) -> list[str]:
    """Finds split expressions that have images in common.

    Args:
      dataset: that they are of.
      expressions: by role, `train` among them.

    Returns:
      Warnings for the user.
    """
    parts = {role: parse_split(expression, dataset.sizes, dataset.name) for role, expression in expressions.items()}
    warnings = []
    for role, expression in expressions.items():
        common = sum(
            max(0, min(stop, other_stop) - max(start, other_start))
            for split, start, stop in parts["train"]
            for other, other_start, other_stop in parts[role]
            if split == other
        )
        if role != "train" and common:
            train = expressions["train"]
            warnings.append(
                f"data.{role}={expression!r} has {common:,} images of data.train={train!r}, so its accuracy flatters: "
                "choose slices that do not overlap, such as 'train[:90%]' and 'train[90%:]'"
            )
    return warnings
