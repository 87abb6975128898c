"""Writes weights for other programs, or makes a weights dir of any checkpoint of a run.

    python -m effnet_jax.export runs/mine weights/mine --step=best
    python -m effnet_jax.export runs/mine/weights out/mine --format=timm
    python -m effnet_jax.export noisy_student_b0 out/b0 --format=stablehlo

SOURCE is a run dir (the run need not be finished), a weights dir, or the name of published weights. A run dir, and OUT
for a weights dir, may lie in a bucket (gs://…).
"""

import argparse
import dataclasses
import importlib
import os
import re
from pathlib import Path
from typing import Any

from etils import epath

from effnet_jax import files
from effnet_jax.errors import ConfigError, DiskError, EffnetError, RunError, WeightsError, nearest, run_command
from effnet_jax.exports.push import check_push, push
from effnet_jax.train.rundir.checkpoints import CHECKPOINTS, best_step, list_steps
from effnet_jax.train.rundir.log import read_rows
from effnet_jax.train.rundir.snapshot import Damage, flat_leaves, read_checkpoint
from effnet_jax.train.rundir.workdir import CONFIG, SUMMARY, read_run_json
from effnet_jax.trees import flatten, nest
from effnet_jax.weights.by_name import weights_dir
from effnet_jax.weights.metadata import Metadata, check_output
from effnet_jax.weights.store import read_weights, write_weights

WEIGHTS = "weights"
FORMATS = {
    WEIGHTS: "a weights dir",
    "timm": "a folder for timm and Hugging Face's hub (safetensors)",
    "keras": "a .weights.h5 for keras.applications",
    "tf1": "a TensorFlow 1 checkpoint, as the original's",
    "stablehlo": "a program that needs no more than jax, for cpu, cuda and tpu",
    "savedmodel": "a SavedModel (needs TensorFlow)",
    "litert": "a .tflite (needs TensorFlow)",
    "onnx": "an ONNX model (needs jax2onnx)",
}
_PROGRAMS = ("stablehlo", "savedmodel", "litert")
LATEST, BEST = "latest", "best"


def export(
    source: epath.PathLike,
    out: epath.PathLike,
    *,
    form: str = WEIGHTS,
    step: str | int = LATEST,
    ema: bool = False,
    input_size: tuple[int, int] | None = None,
) -> Metadata:
    """Writes weights for another program, or as a weights dir.

    Args:
      source: a run dir, whose checkpoint is taken; a weights dir; or the name of published weights.
      out: the folder to make; it must not exist.
      form: a key of `FORMATS`.
      step: of a run's checkpoint; `"latest"`, or `"best"` for the one with the best validation accuracy.
      ema: whether a run's moving averages are taken instead of the weights.
      input_size: height and width of images that the program of the format crops and resizes by itself.

    Returns:
      The metadata of what was written.

    Raises:
      RunError: no such checkpoint, or a damaged one.
      WeightsError: no weights, a run without moving averages, a value that is not finite, a format that cannot hold
        them, or the output exists.
      CheckpointError: a package that the format needs is not installed.
      DiskError: the disk is full.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format={form}: {nearest(form, FORMATS)}")
    if input_size is not None and form not in _PROGRAMS:
        raise ConfigError(f"--input_size is for programs ({', '.join(_PROGRAMS)}): {form} holds weights alone")
    variables, metadata, figures = _read(source, step, ema)
    if form == WEIGHTS:
        return write_weights(out, variables, metadata)
    from effnet_jax.exports.base import Weights

    place = check_output(out)
    if not files.is_local(place):
        raise WeightsError(f"{out} is in a bucket: export to a disk, and copy that")
    given = Path(os.path.abspath(os.path.expanduser(source)))
    name = given.parent.name if given.name in ("weights", "weights_ema") else given.name
    weights = Weights(flatten(variables), metadata, name, figures)
    module = importlib.import_module(f"effnet_jax.exports.{form}")
    files.check_space(place, sum(leaf.nbytes for leaf in weights.leaves.values()), f"the files of {form}")
    try:
        with files.new_folder(place) as folder:
            module.write(weights, Path(folder), **({"input_size": input_size} if form in _PROGRAMS else {}))
    except Exception as error:  # each format's library has its own
        if not files.full_disk(error):
            raise
        raise DiskError(
            f"no space left on the disk for {place}: free some, or write elsewhere (nothing was left behind)"
        ) from error
    return metadata


def _read(source: epath.PathLike, step: str | int, ema: bool) -> tuple[Any, Metadata, dict[str, float]]:
    """Returns variables, what they are, and a run's accuracies."""
    folder = weights_dir(source)
    config = read_run_json(folder / CONFIG, "restore it from a copy") if folder.is_dir() else None
    if not isinstance(config, dict) or "phases" not in config:  # no run's, such as timm's
        if step != LATEST or ema:
            raise RunError(f"--step and --ema choose a checkpoint of a run, and {folder} is no run dir")
        variables, metadata = read_weights(folder)
        return variables, metadata, _figures(folder.parent)
    chosen, record, leaves = _read_step(folder, step)
    state = nest(leaves)
    if ema and "ema" not in state:
        raise WeightsError(f"{folder} keeps no moving averages: leave --ema out")
    variables = state["ema"] if ema else {kind: state[kind] for kind in ("params", "batch_stats")}
    check_finite(variables, f"checkpoint {chosen} of {folder}")
    metadata = metadata_of(record, config, folder)
    metadata = dataclasses.replace(metadata, ema=ema, source={**metadata.source, "step": chosen})
    return variables, metadata, {}


def _read_step(folder: epath.Path, step: str | int) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Returns a checkpoint's step, its record and its leaves."""
    while True:
        chosen = choose_step(folder, step)
        try:
            return chosen, *read_checkpoint(folder / CHECKPOINTS / str(chosen))
        except Damage as damage:
            if chosen not in (steps := list_steps(folder)):  # a run that goes on has removed it: another is the newest
                continue
            others = ", ".join(str(other) for other in steps if other != chosen) or "none"
            raise RunError(
                f"checkpoint {chosen} of {folder} is damaged ({damage}); others: --step {others}"
            ) from damage


def _figures(folder: epath.Path) -> dict[str, float]:
    """The accuracies of a finished run, whose weights dir is in its run dir; none elsewhere."""
    try:
        summary = files.read_json(folder / SUMMARY) or {}
        return {split: float(summary[split]["accuracy"]) for split in ("validation", "test") if split in summary}
    except (ValueError, KeyError, TypeError, OSError):
        return {}


def choose_step(folder: epath.Path, step: str | int) -> int:
    """Returns the step that a name stands for. Raises RunError where there is no such checkpoint."""
    steps = list_steps(folder)
    if not steps:
        raise RunError(f"{folder} has no checkpoint yet: wait for the first, or start the run again")
    if step == LATEST:
        return steps[-1]
    if step == BEST:
        known = {row["step"]: row["accuracy"] for row in read_rows(folder) if row["split"] == "validation"}
        best = best_step(steps, known)
        if best is None:
            raise RunError(f"no checkpoint of {folder} was evaluated on a validation split: take --step {LATEST}")
        return best
    if str(step) not in map(str, steps):
        raise RunError(f"{folder} has no checkpoint {step}: it has {', '.join(map(str, steps))}; or {LATEST}, {BEST}")
    return int(step)


def check_finite(variables: Any, where: str) -> None:
    """Raises WeightsError where a value is not finite."""
    import numpy as np

    for path, leaf in flat_leaves(variables).items():
        if not np.isfinite(leaf).all():
            raise WeightsError(f"{path} of {where} is not finite, so it is not exported: take an earlier --step")


def metadata_of(record: dict[str, Any], config: dict[str, Any], folder: epath.Path) -> Metadata:
    """Returns what a checkpoint says about its weights. One of an earlier format says nothing: its data is asked."""
    if "metadata" in record:
        return Metadata(**{**record["metadata"], "class_names": tuple(record["metadata"]["class_names"])})
    from effnet_jax.data.sources.base import typical_side
    from effnet_jax.data.sources.dataset import ALPHABETICAL
    from effnet_jax.train.config import check_config
    from effnet_jax.train.config.differences import with_defaults
    from effnet_jax.train.initial import check_weights
    from effnet_jax.train.phases import make_phases
    from effnet_jax.train.rundir.export import trained_metadata
    from effnet_jax.train.start import open_sources

    checked = check_config(with_defaults(config))
    try:
        sources, _ = open_sources(checked, ALPHABETICAL)
        parent = check_weights(checked)
    except EffnetError as error:
        raise RunError(
            f"{folder} is of a version whose checkpoints do not hold the class names, and they cannot be read: {error}"
        ) from error
    images = {split: len(source) for split, source in sources.items()}
    phases = make_phases(checked, images, parent, typical_side(sources["train"]))
    feed = phases[min(record["progress"]["phase"], len(phases) - 1)].feed
    return trained_metadata(folder.name, checked, parent, sources["train"], feed)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise ConfigError(f"--input_size={text}: write height and width as 480x640")
    return int(match[1]), int(match[2])


def main() -> int:
    """Runs the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="a run dir, a weights dir, or a name")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    listed = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    parser.add_argument("--format", default=WEIGHTS, metavar="FORMAT", help=listed)
    parser.add_argument("--step", default=LATEST, help=f"{LATEST} (the default), {BEST}, or the step of a checkpoint")
    parser.add_argument("--ema", action="store_true", help="the moving averages of a run instead of the weights")
    parser.add_argument("--input_size", metavar="HxW", help="have a program crop and resize images of this size itself")
    parser.add_argument("--push", metavar="hf://USER/NAME", help="upload the folder to Hugging Face's hub as well")
    args = parser.parse_args()
    size = _size(args.input_size) if args.input_size else None
    if args.push:  # told before anything is written
        check_push(args.push, args.out)
    metadata = export(args.source, args.out, form=args.format, step=args.step, ema=args.ema, input_size=size)
    step = f" of step {metadata.source['step']}" if "step" in metadata.source else ""
    what = "moving averages" if metadata.ema else "weights"
    print(f"wrote {args.out}: {what}{step}, {metadata.num_classes} classes, as {args.format}")
    if args.push:
        print(f"uploaded to {push(args.out, args.push)}")
    return 0


if __name__ == "__main__":
    run_command(main)
