"""What a run needs before its first step: sources that fit together, the model with its weights, and the phases."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.base import Source
from effnet_jax.data.sources.checks import check_classes, check_splits
from effnet_jax.errors import ConfigError, DataError, WeightsError
from effnet_jax.model.efficientnet import EfficientNet, create_model
from effnet_jax.model.variants import VARIANTS
from effnet_jax.train.cache_plan import CachePlan, plan_cache
from effnet_jax.train.config_checks import make_plan
from effnet_jax.train.freeze import FreezePlan
from effnet_jax.train.optimizers import make_optimizer, make_schedule, phase_steps, plateau_scale
from effnet_jax.train.partition import AXIS
from effnet_jax.train.state import Variables
from effnet_jax.train.steps import PURPOSE_INIT
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import read_metadata, read_weights

SPLITS = ("train", "validation", "test")


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


def open_sources(config: Mapping[str, Any]) -> tuple[dict[str, Source], list[str]]:
    """Opens the splits that the config names and checks that they fit one another.

    Returns:
      {split: source}, and warnings for the user.

    Raises:
      DataError: a split is missing, empty or of other classes, or `config.num_classes` is another number.
    """
    sources = {split: open_source(config["data"], split) for split in SPLITS if config["data"][split]}
    for split, source in sources.items():
        if not len(source):
            raise DataError(f"the {split} split of {config['data']['name']} is empty")
    if config["num_classes"]:
        check_classes(sources["train"], config["num_classes"])
    return sources, check_splits(sources)


def make_model(config: Mapping[str, Any], metadata: Metadata | None, num_classes: int) -> EfficientNet:
    """Makes the model of a run; batch norm sees the axis of the devices where each runs its own program (pmap)."""
    axis, groups = batch_norm_sharing(config, jax.device_count())
    return create_model(
        config["variant"],
        num_classes=num_classes,
        normalization=metadata.normalization if metadata else None,
        dtype=config["dtype"],
        remat=config["remat"],
        dropout=config["dropout"],
        survival_prob=config["survival_prob"],
        batch_norm_momentum=config["batch_norm_momentum"],
        batch_norm_axis=axis,
        batch_norm_groups=groups,
    )


def batch_norm_sharing(
    config: Mapping[str, Any], devices: int
) -> tuple[str | None, tuple[tuple[int, ...], ...] | None]:
    """Returns whose batch batch norm sees, as `create_model` takes it: the mapped axis, and the groups of replicas.

    Under `pjit` there are no replicas, and the batch is the global one. Under `pmap` it is that of all replicas, or of
    each `partition.batch_norm_group` neighbours; the stored statistics are the mean over all groups.

    Args:
      config: checked, also for so many devices.
      devices: of all processes.
    """
    size = config["partition"]["batch_norm_group"] or devices
    if config["partition"]["mode"] != "pmap" or size == 1:
        return None, None
    if size == devices:
        return AXIS, None
    return AXIS, tuple(tuple(range(first, first + size)) for first in range(0, devices, size))


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
    classifier = _fresh_classifier(model.variant.top_filters, num_classes)
    return {**variables, "params": {**variables["params"], "classifier": classifier}}


def _fresh_classifier(features: int, classes: int) -> dict[str, np.ndarray]:
    """A classifier that says nothing yet: every class is as likely, the loss starts at log(classes).

    The original's initial kernel is made for training from scratch: over pretrained features, which are large, it
    starts at several times that loss, and a short head phase ends before it has unlearnt its noise.
    """
    return {"kernel": np.zeros((features, classes), np.float32), "bias": np.zeros(classes, np.float32)}


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase, resolved.

    Attributes:
      keys: its config.
      plan: what is trained.
      schedule: learning rate by the step within the phase.
      optimizer: optax chain over all parameters.
      resolution: of its images.
      resized: whether the phase before had another resolution, so that their figures do not compare.
      views: how many views of each image it shows, 0 for a new one at every step; never more than its epochs show.
      cache: what its trunk cache holds, or None.
      start: steps before it.
      end: `start` and its own steps.
      epochs: the steps (counted from the run's start) where one of its epochs ends → number of the epoch, from 1.
      evaluations: those of them where the validation split is evaluated.
    """

    keys: ConfigDict
    plan: FreezePlan
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    resolution: int
    resized: bool
    views: int
    cache: CachePlan | None
    start: int
    end: int
    epochs: Mapping[int, int]
    evaluations: frozenset[int]

    @property
    def name(self) -> str:
        return str(self.keys["name"])

    def learning_rate(self, step: int, opt_state: Any) -> float:
        """The learning rate of the step that made `step` steps done, with a plateau's scale out of `opt_state`."""
        return float(self.schedule(step - 1 - self.start)) * plateau_scale(opt_state)


def make_phases(config: Mapping[str, Any], images: Mapping[str, int]) -> list[Phase]:
    """Resolves the phases of a checked config.

    Args:
      config: checked.
      images: number of images by split.

    Raises:
      ConfigError: a trunk cache does not fit its budget.
    """
    steps_per_epoch = images["train"] / config["batch_size"]
    phases: list[Phase] = []
    start = 0
    for number, keys in enumerate(config["phases"]):
        steps = phase_steps(keys, steps_per_epoch)
        plan = make_plan(config, keys)
        schedule = make_schedule(keys, steps=steps, steps_per_epoch=steps_per_epoch, batch_size=config["batch_size"])
        ends: dict[int, int] = {}
        epoch = 1
        while (end := start + max(1, round(epoch * steps_per_epoch))) < start + steps:
            ends[end] = epoch
            epoch += 1
        ends[start + steps] = epoch
        every = config["eval_every"]
        evaluations = frozenset(step for step, epoch in ends.items() if epoch % every == 0 or step == start + steps)
        optimizer = make_optimizer(keys, plan, schedule)
        resolution = phase_resolution(config, keys)
        resized = bool(phases) and phases[-1].resolution != resolution
        views = min(keys["views"], _epochs_shown(start, start + steps, config["batch_size"], images["train"]))
        cache = plan_cache(keys, plan, views, resolution=resolution, images=images, where=f"phases[{number}]")
        phases.append(
            Phase(
                keys=keys,
                plan=plan,
                schedule=schedule,
                optimizer=optimizer,
                resolution=resolution,
                resized=resized,
                views=views,
                cache=cache,
                start=start,
                end=start + steps,
                epochs=ends,
                evaluations=evaluations,
            )
        )
        start += steps
    return phases


def _epochs_shown(start: int, end: int, batch_size: int, count: int) -> int:
    """How many epochs of the endless sequence the steps from `start` to `end` touch."""
    return (end * batch_size - 1) // count - start * batch_size // count + 1


def phase_resolution(config: Mapping[str, Any], phase: Mapping[str, Any]) -> int:
    """The resolution of a phase: its own, else the config's, else the variant's."""
    return int(phase["resolution"]) or int(config["resolution"]) or VARIANTS[config["variant"]].resolution
