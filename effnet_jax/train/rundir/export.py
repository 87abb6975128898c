"""The weights of a run: what their use asks for, and where they came from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from effnet_jax import files, hosts
from effnet_jax.data.loader import evaluation_rule
from effnet_jax.data.sources.base import Source
from effnet_jax.model.variants import FAMILIES
from effnet_jax.train.config import to_json
from effnet_jax.train.phases import Feed
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import write_weights

WEIGHTS, WEIGHTS_EMA = "weights", "weights_ema"


def trained_metadata(
    run: str, config: Mapping[str, Any], parent: Metadata | None, source: Source, feed: Feed
) -> Metadata:
    """Returns the metadata of trained weights: what their use asks for, and where they came from.

    Args:
      run: name of the run dir.
      config: of the run.
      parent: of the weights that the run started from, if any.
      source: the training images.
      feed: of the phase: its resolution, crop rule and evaluation.
    """
    classes, variant = tuple(source.class_names), config["variant"]
    if parent is None:
        family = "lite" if variant.startswith("lite") else "imagenet"
        parent = Metadata(variant, family, FAMILIES[family].normalization, feed.crop, feed.resolution, len(classes))
        origin = None
    else:
        origin = {"weights": config["weights"], "family": parent.family, "source": parent.source}
    return dataclasses.replace(
        parent,
        crop=feed.crop,
        evaluation=evaluation_rule(source, feed.evaluation),
        resize=feed.resize,
        resolution=feed.resolution,
        num_classes=len(classes),
        class_names=classes,
        ema=False,
        source={"run": run, "config": to_json(config), "parent": origin},
        versions={},
        checksums={},
    )


def write_run_weights(folder: epath.Path, choices: Mapping[str, Any], metadata: Mapping[str, Metadata]) -> None:
    """Writes weights dirs of a run, in place of those that a stopped attempt left.

    Args:
      folder: the run dir.
      choices: {`WEIGHTS` or `WEIGHTS_EMA`: variables}.
      metadata: of each of them.
    """
    for name, variables in choices.items():
        path = folder / name
        with hosts.agree("room for weights is made"):
            if hosts.is_first():
                files.remove(path)
        write_weights(path, variables, dataclasses.replace(metadata[name], ema=name == WEIGHTS_EMA))
