"""Compiles what the phases of a recipe run, for a slice that is not there."""

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict

from effnet_jax import files
from effnet_jax.errors import ConfigError, EffnetError, WeightsError
from effnet_jax.tpu import AUTO
from effnet_jax.tpu.batch import largest_batch
from effnet_jax.tpu.chips import CHIPS, Chip, Topology, topology_devices
from effnet_jax.tpu.report import Report, report, too_large
from effnet_jax.train.config import check_config, to_json
from effnet_jax.train.config.checks import check_devices
from effnet_jax.train.initial import check_weights
from effnet_jax.train.programs import PhasePrograms, phase_programs
from effnet_jax.train.start import SPLITS, open_sources
from effnet_jax.weights.by_name import place_of
from effnet_jax.weights.metadata import current_versions
from effnet_jax.weights.published import find_published

IMAGENET = {"train": 1_281_167, "validation": 50_000, "test": 50_000}

Tell = Callable[[str], None]


class Compiler:
    """Compiles steps and reports on them; a step that another one equals to the letter is compiled once.

    Args:
      chip: what is compiled for.
      tell: hears of each compilation.
    """

    def __init__(self, chip: Chip, tell: Tell) -> None:
        self.chip = chip
        self.tell = tell
        self._done: dict[str, Report] = {}

    def report(self, name: str, lower: Callable[[], jax.stages.Lowered], images_per_chip: float) -> Report:
        """Reports on a step; one that is too large for the chip's memory too."""
        lowered = lower()
        key = hashlib.sha256(lowered.as_text().encode()).hexdigest()
        if key not in self._done:
            began = time.monotonic()
            self._done[key] = self._compile(lowered, images_per_chip, began)
            seconds = time.monotonic() - began
            fits = "" if self._done[key].fits else ": does not fit"
            self.tell(f"{name}, {images_per_chip:g} images a chip: compiled in {seconds:.0f} s{fits}")
        return self._done[key]

    def _compile(self, lowered: jax.stages.Lowered, images: float, began: float) -> Report:
        try:
            compiled = lowered.compile()
        except JaxRuntimeError as error:
            found = too_large(str(error), self.chip, images)
            if found is None:
                raise
            return found
        return report(compiled, self.chip, images, time.monotonic() - began)


def compile_recipe(
    config: Any, topology: Topology, *, batch_size: int = 0, images: int = 0, tell: Tell = print
) -> dict[str, Any]:
    """Compiles the training step and the evaluation step of every phase.

    Args:
      config: a recipe's.
      topology: the slice.
      batch_size: of all chips together; 0: the config's; `AUTO`: the largest with which every training step fits.
      images: of the training split; 0: the data's where it can be read here, else ImageNet's.
      tell: hears how it goes.

    Returns:
      What the command writes as JSON; its `config` is the recipe's, with `batch_size` as it was compiled.

    Raises:
      EffnetError: what the user can cure.
    """
    config = check_config(config)
    devices = topology_devices(topology.name)
    if batch_size > 0:
        config.batch_size = batch_size
    if batch_size != AUTO:
        check_devices(config, len(devices))
    weights, config = config.weights, _without_weights(config, tell)
    counts, classes = _counts(config, images, tell)
    compiler = Compiler(topology.chip, tell)

    def programs(batch_size: int) -> list[PhasePrograms]:
        changed = config.copy_and_resolve_references()
        changed.batch_size = batch_size
        return phase_programs(changed, devices, images=counts, num_classes=classes)

    if batch_size == AUTO:
        config.batch_size = _largest(programs, compiler, config, len(devices), counts["train"])
    phases = []
    for phase in programs(config.batch_size):
        share, eval_share = phase.batch_size / len(devices), phase.eval_batch_size / len(devices)
        train = compiler.report(f"{phase.name}: training step", phase.train, share)
        evaluate = compiler.report(f"{phase.name}: evaluation step", phase.evaluate, eval_share)
        phases.append(
            {
                "name": phase.name,
                "batch_size": phase.batch_size,
                "eval_batch_size": phase.eval_batch_size,
                "train": train.to_json(),
                "evaluate": evaluate.to_json(),
            }
        )
    return {
        "topology": topology.name,
        "chip": topology.chip.name,
        "chips": topology.chips,
        "config": to_json(config) | {"weights": weights},
        "images": counts,
        "num_classes": classes,
        "versions": current_versions() | {"libtpu": _libtpu_version()},
        "phases": phases,
    }


def misfits(result: Mapping[str, Any]) -> list[str]:
    """Returns a line for each step that does not fit, with what would."""
    lines = []
    for phase in result["phases"]:
        for key, step in (("train", "training"), ("evaluate", "evaluation")):
            if not phase[key]["fits"]:
                cure = _cure(phase[key]["bytes_per_chip"], phase[key]["usable_bytes"])
                lines.append(f"{phase['name']}: the {step} step does not fit: {cure}")
    return lines


def _cure(needed: int, usable: int) -> str:
    larger = [f"{c.name} ({c.usable_bytes / 2**30:.4g} GiB)" for c in CHIPS.values() if c.usable_bytes >= needed]
    others = f"; as it is it fits a chip of {' or '.join(larger)}" if larger else ""
    return (
        f"it needs {needed / 2**30:.4g} GiB a chip and has {usable / 2**30:.4g} GiB. Take a smaller batch "
        "(--batch_size=auto finds the largest), microbatches, remat, or partition.fsdp over more chips"
        f"{others}"
    )


def _largest(
    programs: Callable[[int], list[PhasePrograms]], compiler: Compiler, config: ConfigDict, chips: int, images: int
) -> int:
    order: list[str] = []  # a phase that did not fit is asked first

    def measure(share: int) -> Report:
        found = []
        for phase in sorted(programs(share * chips), key=lambda phase: phase.name not in order):
            one = compiler.report(f"{phase.name}: training step", phase.train, share)
            if not one.fits:
                order.append(phase.name)
                return one
            found.append(one)
        return max(found, key=lambda one: one.bytes_per_chip)

    best = largest_batch(measure, config.batch_size // chips, images // chips, config.microbatches)
    if not best.fits:
        raise ConfigError(
            f"--batch_size=auto: {best.images_per_chip:g} images a chip are too many already: "
            f"{_cure(best.bytes_per_chip, best.usable_bytes)}"
        )
    return int(best.images_per_chip) * chips


def _without_weights(config: ConfigDict, tell: Tell) -> ConfigDict:
    """Leaves out weights that are not on this machine: they decide on pixels, not on what is compiled."""
    if not config.weights:
        return config
    published = find_published(config.weights)
    if published and published.variant != config.variant:
        raise WeightsError(
            f"{config.weights} are weights of {published.variant}, and config.variant is {config.variant!r}: set "
            f"variant={published.variant!r}, or give other weights"
        )
    here = place_of(published).is_dir() if published else files.as_path(config.weights).exists()
    if here or "/" not in config.weights and not published:  # no path: told if it is no name either
        check_weights(config)
        return config
    tell(f"note: {config.weights} is not here: compiled without a look at its weights")
    config = config.copy_and_resolve_references()
    config.weights = ""
    return config


def _counts(config: ConfigDict, images: int, tell: Tell) -> tuple[dict[str, int], int]:
    """The number of images of each split, and of classes."""
    splits: Sequence[str] = [split for split in SPLITS if config.data[split]]
    try:
        sources, _ = open_sources(config)
        counts, classes = {split: len(sources[split]) for split in splits}, len(sources["train"].class_names)
    except EffnetError as error:
        tell(f"note: the sizes of ImageNet are taken for the data, which cannot be read here ({error})")
        counts, classes = {split: IMAGENET[split] for split in splits}, config.num_classes or 1000
    return counts | ({"train": images} if images else {}), classes


def _libtpu_version() -> str:
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
