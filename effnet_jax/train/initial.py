"""What a run begins with: its model, and the values of published weights or of its seed."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from effnet_jax.errors import ConfigError, WeightsError
from effnet_jax.model.efficientnet import EfficientNet, create_model
from effnet_jax.train.config.checks import make_plan
from effnet_jax.train.step.freeze import units_of
from effnet_jax.train.step.partition import AXES, DATA
from effnet_jax.train.step.state import Variables
from effnet_jax.train.step.steps import PURPOSE_INIT
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import fresh_classifier, read_metadata, read_weights


def check_weights(config: Mapping[str, Any]) -> Metadata | None:
    """Reads the metadata of `config.weights` and checks that they are of the config's variant.

    Returns:
      The metadata; None for a run from scratch.

    Raises:
      WeightsError: no such weights dir, a damaged one, or another variant's.
    """
    if not config["weights"]:
        return None
    metadata = read_metadata(config["weights"])
    if metadata.variant != config["variant"]:
        raise WeightsError(
            f"{config['weights']} holds weights of {metadata.variant}, and config.variant is {config['variant']!r}: "
            f"set variant={metadata.variant!r}, or give other weights"
        )
    return metadata


def make_model(
    config: Mapping[str, Any], metadata: Metadata | None, num_classes: int, devices: int, platform: str = "cpu"
) -> EfficientNet:
    """Makes the model of a run on so many devices of a platform, each of which runs on its share of a batch."""
    axis, groups = batch_norm_sharing(config, devices)
    return create_model(
        config["variant"],
        num_classes=num_classes,
        normalization=metadata.normalization if metadata else None,
        dtype=config["dtype"],
        remat=units_of(config["remat"], config["variant"]),
        dropout=config["dropout"],
        survival_prob=config["survival_prob"],
        batch_norm_momentum=config["batch_norm_momentum"],
        batch_norm_axis=axis,
        batch_norm_groups=groups,
        batch_norm_narrow_moments=platform == "tpu",
        lowering="auto" if platform == "cpu" else "platform",  # which may be lowered here for devices elsewhere
    )


def batch_norm_sharing(
    config: Mapping[str, Any], devices: int
) -> tuple[str | tuple[str, ...] | None, tuple[tuple[int, ...], ...] | None]:
    """Returns whose batch batch norm sees, as `create_model` takes it: the axes of devices, and groups of them.

    Under `pjit` it is the global one. Under `pmap` it is that of all devices, or of each `partition.batch_norm_group`
    neighbours; the stored statistics are the mean over all groups.

    Args:
      config: checked, also for so many devices.
      devices: of all processes.
    """
    size = config["partition"]["batch_norm_group"] or devices
    if size == 1:
        return None, None
    if size == devices:
        return AXES, None
    return DATA, tuple(tuple(range(first, first + size)) for first in range(0, devices, size))


def keeps_classifier(config: Mapping[str, Any], metadata: Metadata | None, class_names: tuple[str, ...]) -> bool:
    """Returns whether a run starts with the classifier of its weights: where that is of the same classes.

    Raises:
      ConfigError: the classifier starts fresh, and the first phase does not train it: its zeros pass no gradient on, so
        that nothing else would learn either.
    """
    if metadata and metadata.num_classes == len(class_names) and metadata.class_names in ((), class_names):
        return True
    if metadata and not make_plan(config, config["phases"][0]).trains_classifier:
        raise ConfigError(
            f"the weights have {metadata.num_classes or 'no'} classes, the data {len(class_names)} or others, so "
            "the classifier starts fresh, but the first phase does not train it: add 'classifier' to phases[0].train"
        )
    return False


def initial_variables(
    config: Mapping[str, Any], model: EfficientNet, num_classes: int, *, keep_classifier: bool
) -> Variables:
    """Returns what a run starts from: its weights, or fresh values from its seed.

    Raises:
      WeightsError: damaged weights.
    """
    if not config["weights"]:
        key = jax.random.fold_in(jax.random.key(config["seed"]), PURPOSE_INIT)
        return jax.jit(model.init)(key, jnp.zeros((1, 64, 64, 3)))
    variables, _ = read_weights(config["weights"])
    if keep_classifier:
        return variables
    classifier = fresh_classifier(model.variant.top_filters, num_classes)
    return {**variables, "params": {**variables["params"], "classifier": classifier}}
