"""A phase, resolved once from the checked config: nothing merges settings again later."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax
from ml_collections import ConfigDict

from effnet_jax import hosts
from effnet_jax.data.augment import make_augment
from effnet_jax.data.balance import balanced_order, class_weights
from effnet_jax.data.loader import BadImages, Batches, eval_batches, ordered_batches, square_size, train_batches
from effnet_jax.data.order import BalancedOrder
from effnet_jax.data.sources.base import Source
from effnet_jax.data.squares import SquareCache
from effnet_jax.model.variants import VARIANTS
from effnet_jax.train.cache.plan import CachePlan, plan_cache
from effnet_jax.train.config.checks import augment_settings, make_plan, sampling_of, weights_asked
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.train.step.optimizers import make_optimizer, make_schedule, phase_steps, plateau_scale, unit_factors
from effnet_jax.train.step.steps import Augment
from effnet_jax.weights.metadata import Metadata

_LARGER = 1.25  # times the resolution: below, what smoothing takes from a photograph is nothing


@dataclasses.dataclass(frozen=True)
class Feed:
    """How the images of a phase become batches.

    Attributes:
      batch_size: of a step, over all devices.
      eval_batch_size: of an evaluation, likewise.
      seed: of the order.
      sampling: `"natural"`: every image comes equally often; `"balanced"`: every class.
      resolution: side of the images.
      square: side of the squares of decoded photographs.
      crop: the evaluation's crop rule.
      evaluation: `"auto"`, `"crop"` or `"resize"`.
      resize: `"bicubic"` or `"antialias"`, of the evaluation.
      workers: processes that decode.
      squares: keeps squares of photographs, for all phases.
      part: (number of this process, how many there are), where each shuffles a part of the examples; else None.
      balanced: the order of balanced sampling, where the labels are known.
    """

    batch_size: int
    eval_batch_size: int
    seed: int
    sampling: str
    resolution: int
    square: int
    crop: str
    evaluation: str
    resize: str
    workers: int
    squares: SquareCache
    part: tuple[int, int] | None = None
    balanced: BalancedOrder | None = None

    @property
    def order(self) -> dict[str, Any]:
        """What the examples of a step follow from, as `train_batches` of loader and trunk cache take it."""
        if self.sampling == "balanced" and self.balanced is None:
            raise ValueError("balanced sampling goes by the labels: give make_phases the training images")
        return {"batch_size": self.batch_size, "seed": self.seed, "balanced": self.balanced}

    def training(self, source: Source, start_step: int, rows: np.ndarray, bad: BadImages | None = None) -> Batches:
        """Endless batches from a step on; `rows` of each are this process's (`loader.train_batches`)."""
        given = {**self.order, **self._squared}
        return train_batches(source, start_step=start_step, rows=rows, part=self.part, bad=bad, **given)

    def in_order(
        self, source: Source, batch_size: int, start: int, rows: np.ndarray, bad: BadImages | None = None
    ) -> Batches:
        """Every training image once and in order; `rows` of each batch are this process's (`ordered_batches`)."""
        return ordered_batches(source, batch_size=batch_size, start=start, rows=rows, bad=bad, **self._squared)

    @property
    def _squared(self) -> dict[str, Any]:
        return {"workers": self.workers, "size": self.square, "squares": self.squares}

    def evaluating(
        self, source: Source, batch_size: int, rows: np.ndarray | None = None, bad: BadImages | None = None
    ) -> Batches:
        """Every example once, as it is evaluated (`loader.eval_batches`)."""
        return eval_batches(
            source,
            batch_size=batch_size,
            resolution=self.resolution,
            crop=self.crop,
            evaluation=self.evaluation,
            resize=self.resize,
            workers=self.workers,
            rows=rows,
            bad=bad,
        )


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase, resolved.

    Attributes:
      number: from 0.
      keys: its config.
      plan: what is trained.
      schedule: learning rate by the step within the phase.
      optimizer: optax chain over all parameters.
      augment: settings of augmentation, complete.
      feed: how its batches are made.
      class_weights: what each class counts in the loss, float32 [classes]; None: all alike.
      resized: whether the phase before had another resolution, so that their figures do not compare.
      views: how many views of each image it shows, 0 for a new one at every step; never more than its epochs show.
      cache: what its trunk cache holds, or None.
      start: steps before it.
      end: `start` and its own steps.
      epochs: the steps (counted from the run's start) where one of its epochs ends → number of the epoch, from 1.
      evaluations: those of them where the validation split is evaluated.
    """

    number: int
    keys: ConfigDict
    plan: FreezePlan
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    augment: Mapping[str, Any]
    feed: Feed
    class_weights: np.ndarray | None
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

    @property
    def resolution(self) -> int:
        return self.feed.resolution

    @property
    def factors(self) -> Mapping[str, float]:
        """The learning-rate factor of each trained unit."""
        return unit_factors(self.plan, self.keys["layer_decay"], self.keys["factors"])

    def make_augment(self, num_classes: int) -> Augment:
        """The function (batch, keys) → (images, soft targets) of a step."""
        return make_augment(self.augment, resolution=self.resolution, num_classes=num_classes)

    def learning_rate(self, step: int, opt_state: Any) -> float:
        """The learning rate of the step that made `step` steps done, with a plateau's scale out of `opt_state`."""
        return float(self.schedule(step - 1 - self.start)) * plateau_scale(opt_state)


def make_phases(
    config: Mapping[str, Any],
    images: Mapping[str, int],
    weights: Metadata | None = None,
    side: float = 0.0,
    train: Source | None = None,
) -> list[Phase]:
    """Resolves the phases of a checked config.

    Args:
      config: checked.
      images: number of images by split.
      weights: metadata of those that the run starts from, if any.
      side: the shorter side of a typical training photograph in pixels; 0 for small images.
      train: the training images, whose labels weigh and balance classes. Without them, for shapes and programs alone,
        nothing is weighed.

    Raises:
      ConfigError: a trunk cache does not fit its budget; weights of classes that there are not.
      DataError: classes are to be weighed or balanced, and labels cannot be known without reading all images.
    """
    phases: list[Phase] = []
    squares = SquareCache(config["data"]["cache_gib"])
    balanced = None
    if train is not None and any(sampling_of(config, keys) == "balanced" for keys in config["phases"]):
        balanced = balanced_order(config["seed"], train)
    for keys in config["phases"]:
        feed = _make_feed(config, keys, squares, weights, side, balanced)
        weighed = class_weights(weights_asked(config, keys), train, feed.sampling) if train is not None else None
        phases.append(_make_phase(config, keys, images, feed, weighed, phases[-1] if phases else None))
    return phases


def _make_phase(
    config: Mapping[str, Any],
    keys: ConfigDict,
    images: Mapping[str, int],
    feed: Feed,
    weighed: np.ndarray | None,
    before: Phase | None,
) -> Phase:
    batch_size, start = config["batch_size"], before.end if before else 0
    number = before.number + 1 if before else 0
    steps_per_epoch = images["train"] / batch_size
    steps = phase_steps(keys, steps_per_epoch)
    plan = dataclasses.replace(make_plan(config, keys), before=before.plan if before else None)
    schedule = make_schedule(keys, steps=steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    end = start + steps
    shown = (
        feed.balanced.epochs_between(start * batch_size, end * batch_size)
        if feed.balanced
        else _epochs_shown(start, end, batch_size, images["train"])
    )
    views = min(keys["views"], shown)
    epochs = _epoch_ends(start, end, steps_per_epoch)
    return Phase(
        number=number,
        keys=keys,
        plan=plan,
        schedule=schedule,
        optimizer=make_optimizer(keys, plan, schedule),
        augment=augment_settings(config, keys),
        feed=feed,
        class_weights=weighed,
        resized=before is not None and before.resolution != feed.resolution,
        views=views,
        cache=plan_cache(keys, plan, views, resolution=feed.resolution, images=images, where=f"phases[{number}]"),
        start=start,
        end=end,
        epochs=epochs,
        evaluations=frozenset(
            step for step, epoch in epochs.items() if epoch % config["eval_every"] == 0 or step == end
        ),
    )


def _make_feed(
    config: Mapping[str, Any],
    keys: Mapping[str, Any],
    squares: SquareCache,
    weights: Metadata | None,
    side: float,
    balanced: BalancedOrder | None,
) -> Feed:
    data, sampling = config["data"], sampling_of(config, keys)
    resolution = int(keys["resolution"]) or int(config["resolution"]) or VARIANTS[config["variant"]].resolution
    return Feed(
        batch_size=config["batch_size"],
        eval_batch_size=config["eval_batch_size"] or config["batch_size"],
        seed=config["seed"],
        sampling=sampling,
        resolution=resolution,
        square=square_size(resolution, data["size"]),
        crop=data["crop"] or _crop_rule(data["resize"], resolution, weights),
        evaluation=data["evaluation"],
        resize=_resize_rule(data["resize"], resolution, side),
        workers=data["workers"],
        squares=squares,
        part=(hosts.index(), hosts.count()) if data["order"] == "sharded" else None,
        balanced=balanced if sampling == "balanced" else None,
    )


def _resize_rule(asked: str, resolution: int, side: float) -> str:
    """How photographs are resized in evaluation: where training smooths what it shrinks, so does evaluation."""
    if asked != "auto":
        return asked
    return "antialias" if side > _LARGER * resolution else "bicubic"


def _crop_rule(resize: str, resolution: int, weights: Metadata | None) -> str:
    """The crop of the evaluation: a padding of 32 pixels, as published weights have it, is much of a small image."""
    if weights is None:
        return "frac"
    return "frac" if resize != "bicubic" and resolution < weights.resolution else weights.crop


def _epoch_ends(start: int, end: int, steps_per_epoch: float) -> dict[int, int]:
    """The steps where an epoch of a phase ends → its number from 1; the last one is cut off at the phase's end."""
    ends: dict[int, int] = {}
    epoch = 1
    while (step := start + max(1, round(epoch * steps_per_epoch))) < end:
        ends[step] = epoch
        epoch += 1
    ends[end] = epoch
    return ends


def _epochs_shown(start: int, end: int, batch_size: int, count: int) -> int:
    """How many epochs of the endless sequence the steps from `start` to `end` touch."""
    return (end * batch_size - 1) // count - start * batch_size // count + 1
