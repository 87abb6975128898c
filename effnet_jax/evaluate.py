"""Measures weights on labelled images: `python -m effnet_jax.evaluate WEIGHTS|RUN [--config.data.name=…]`.

WEIGHTS is a weights dir or the name of published weights, RUN the run dir of a finished training, whose data is taken
where no other is given. Prints accuracies with their 95 % intervals, calibration, the hardest classes and the most
frequent confusions.

    python -m effnet_jax.evaluate runs/quickstart --json=figures.json --pictures=pictures
    python -m effnet_jax.evaluate noisy_student_b0 --config.data.name=IMAGENET_FOLDER --split=validation
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from effnet_jax import files, hosts
from effnet_jax.data.loader import BadImages, eval_batches
from effnet_jax.data.sources import ROLES, open_dataset
from effnet_jax.data.sources.base import Source, expand
from effnet_jax.errors import ConfigError, DataError, WeightsError, nearest, run_command
from effnet_jax.metrics.answers import gather_answers, make_answer_step
from effnet_jax.metrics.asking import answer_rows, skipped_by_all
from effnet_jax.metrics.classes import match_classes
from effnet_jax.metrics.evaluation import Evaluation
from effnet_jax.train.compiling import keep_for_next_time
from effnet_jax.train.config import default_config, flat, plain
from effnet_jax.train.rundir.workdir import CONFIG, read_run_json
from effnet_jax.train.screen import Counting
from effnet_jax.train.step.partition import make_partition
from effnet_jax.train.step.steps import make_logits
from effnet_jax.weights.hub import HUB
from effnet_jax.weights.metadata import METADATA_FILE, Metadata
from effnet_jax.weights.store import load_weights

_PICTURES = ("confusions.png", "reliability.png")


def evaluate(
    weights: str,
    config: Any,
    *,
    split: str = "test",
    batch_size: int = 64,
    tell: Any = lambda done, total: None,
    **settings: Any,
) -> Evaluation:
    """Measures weights on a split.

    Args:
      weights: a weights dir, or the name of published weights.
      config: with `data` (`default_config`): where the images are, and the split expressions.
      split: `"train"`, `"validation"`, `"test"`, or a split expression.
      batch_size: of all devices together.
      tell: hears (examples done, of how many).
      settings: of the model, as `create_model` takes them.

    Raises:
      EffnetError: weights without a classifier, data of other classes, an image that cannot be read, …
    """
    model, variables, metadata = load_weights(weights, **settings)
    if not metadata.num_classes:
        raise WeightsError(f"{weights} has no classifier, so that there is nothing to measure: train one first")
    data = config["data"]
    source = open_splits(data, [split], metadata.class_names)[split]
    return evaluate_source(
        model, variables, metadata, source, batch_size=batch_size, workers=data["workers"], tell=tell
    )


def open_splits(data: Any, splits: Sequence[str], class_names: Sequence[str]) -> dict[str, Source]:
    """Opens splits of the data of a run, or of other data.

    Args:
      data: of a config.
      splits: `"train"`, `"validation"`, `"test"`, or split expressions.
      class_names: an order of the classes that is kept where they are the same.

    Returns:
      A source for each of them.

    Raises:
      DataError: no such data or split.
    """
    name, given = str(data["name"]), [role for role in ROLES if data[role]]
    for split in splits:
        if split in ROLES and split not in given:
            others = " or ".join(f"--split={role}" for role in reversed(given))
            raise DataError(f"there is no {split} split, since data.{split} is '': take {others or 'an expression'}")
    expressions = {split: str(data[split]) if split in ROLES else split for split in splits}
    try:
        dataset = open_dataset(data, list(expressions.values()), class_names=class_names)
        return {split: dataset.split(expression) for split, expression in expressions.items()}
    except DataError as error:
        if os.path.exists(expand(name)):
            raise
        raise DataError(
            f"{error} (the data is {name!r}: where it has moved, give --config.data.name=PLACE; a relative path begins "
            "at the folder that the training was started in)"
        ) from None


def evaluate_source(
    model: Any,
    variables: Any,
    metadata: Metadata,
    source: Source,
    *,
    batch_size: int = 64,
    workers: int = 0,
    tell: Any = lambda done, total: None,
) -> Evaluation:
    """Measures weights that are loaded on a split that is open, as they say that they are evaluated.

    Args:
      model: from `create_model`.
      variables: of it, as arrays of this process.
      metadata: of the weights: resolution, crop, temperature, classes.
      source: the split.
      batch_size: of all devices together; raised to a multiple of their number.
      workers: processes that decode a large set of photographs.
      tell: hears (examples done, of how many).

    Raises:
      DataError: data of other classes, or an image that cannot be read.
      WeightsError: answers that are no numbers.
    """
    classes = match_classes(metadata, source.class_names, source.name)
    partition = make_partition("pjit", None)
    size = -(-batch_size // partition.mesh.size) * partition.mesh.size
    skipped: BadImages = [*source.left_out]
    batches = eval_batches(
        source,
        batch_size=size,
        resolution=metadata.resolution,
        crop=metadata.crop,
        evaluation=metadata.evaluation,
        resize=metadata.resize,
        workers=workers,
        rows=partition.rows(size),
        bad=skipped,
    )
    step = partition.compile_rows(make_answer_step(make_logits(model, resolution=metadata.resolution)))
    values = (partition.place_state(variables), np.float32(metadata.temperature))
    rows = answer_rows(step, values, batches, partition.place_batch, classes, lambda done: tell(done, len(source)))
    answers, skipped = gather_answers(rows, metadata.num_classes), skipped_by_all(skipped)
    if not len(answers):
        first = skipped[0]["error"] if skipped else "it is empty"
        raise DataError(f"no image of {source.name} can be read, so that there is nothing to measure: {first}")
    if len(broken := answers.index[~np.isfinite(answers.loss)]):
        raise WeightsError(
            f"the answers to {len(broken):,} of {len(answers):,} images of {source.name} are no numbers, to "
            f"{source.example_id(int(broken[0]))} first: the weights hold values that are not finite or far too large: "
            "take others, such as those of an earlier checkpoint"
        )
    names = metadata.class_names or tuple(source.class_names)
    return Evaluation(answers, names, source, metadata.temperature, skipped)


def find_target(target: str) -> tuple[str, dict[str, Any] | None]:
    """Returns the weights of a target, and its config where it is a run dir.

    Raises:
      WeightsError: the run is not finished.
    """
    if target.startswith(HUB):  # a name
        return target, None
    folder = files.as_path(target)
    if not (folder / CONFIG).exists() or (folder / METADATA_FILE).exists():
        return target, None
    if not (folder / "weights" / METADATA_FILE).exists():
        raise WeightsError(
            f"{folder} is the run dir of a run that is not finished: take the weights of its newest checkpoint with "
            f"python -m effnet_jax.export {folder} OUT, and evaluate OUT"
        )
    return str(folder / "weights"), read_run_json(folder / CONFIG)


def data_config(run: dict[str, Any] | None, overrides: Sequence[str], recipe: str = "") -> Any:
    """Returns a config whose `data` is a run's, a recipe's or the default, with overrides.

    Args:
      run: config of a run, or None.
      overrides: `--config.data.KEY=VALUE` arguments.
      recipe: `FILE[:ARGUMENT]` or the name of a recipe; wins over the run's.

    Raises:
      ConfigError: a key that does not exist or is not of the data, or a value that cannot be read.
    """
    for argument in overrides:
        key = argument.partition("=")[0]
        if not key.startswith("--config.data."):
            raise ConfigError(f"{key}: there is no such flag or key: only --config.data.KEY=VALUE can be given here")
    if recipe:
        from effnet_jax.train.__main__ import parse_command

        return parse_command(["evaluate", f"--config={recipe}", *overrides, "--workdir=unused"]).config
    base = default_config()
    if run:
        for key, value in run["data"].items():
            if key in base.data:
                base.data[key] = value
    known = [key for key, _ in flat(plain(base)) if key.startswith("data.")]
    for argument in overrides:
        if (key := argument.removeprefix("--config.").partition("=")[0]) not in known:
            raise ConfigError(f"--config.{key}: there is no such key: {nearest(key, known)}")
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", ConfigDict(base), flag_values=values)
    try:
        values(["evaluate", *overrides])
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    return values["config"].value


def main() -> int:
    """Runs the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="WEIGHTS|RUN", help="a weights dir, published weights' name, or a run dir")
    parser.add_argument("--config", default="", help="a recipe whose data is taken")
    parser.add_argument("--split", default="test", help="train, validation, test, or an expression (test)")
    parser.add_argument("--batch_size", type=int, default=64, help="of all devices together (64)")
    parser.add_argument("--dtype", default="float32", help="of the model: float32 or bfloat16")
    parser.add_argument("--json", default="", metavar="OUT", help="where to write the figures")
    parser.add_argument("--csv", default="", metavar="OUT", help="where to write a line for each image")
    parser.add_argument("--pictures", default="", metavar="DIR", help="where to draw confusions and reliability")
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0, where hosts are several")
    parser.add_argument("--processes", type=int, default=0, help="how many processes there are")
    parser.add_argument("--process", type=int, default=-1, help="which this is, from 0")
    options, others = parser.parse_known_args()
    if options.batch_size < 1:
        parser.error("--batch_size must be 1 or more")
    weights, run = find_target(options.target)
    config = data_config(run, others, options.config)
    hosts.join(options.coordinator, options.processes, options.process)
    keep_for_next_time()
    counting = Counting("evaluating")
    with hosts.watch():  # what ends one process ends all
        with hosts.agree("the outputs can be written"):
            if hosts.is_first():
                for path in _outputs(options):
                    files.check_writable(path)
        evaluation = evaluate(
            weights,
            config,
            split=options.split,
            batch_size=options.batch_size,
            dtype=options.dtype,
            tell=lambda done, total: counting(done),
        )
        if hosts.is_first():
            print("\n".join(evaluation.words()))
            _write(evaluation, options)
    return 0


def _outputs(options: argparse.Namespace) -> list[files.AnyPath]:
    """The files that are asked for."""
    drawn = [files.as_path(options.pictures) / name for name in _PICTURES] if options.pictures else []
    return [*filter(None, (options.json, options.csv)), *drawn]


def _write(evaluation: Evaluation, options: argparse.Namespace) -> None:
    """Writes the files that are asked for."""
    if options.json:
        files.write_json(options.json, evaluation.as_json())
    if options.csv:
        files.write_bytes(options.csv, evaluation.as_csv().encode())
    if options.pictures:
        from effnet_jax.metrics.pictures import draw_confusions, draw_reliability

        confused, reliable = (files.as_path(options.pictures) / name for name in _PICTURES)
        files.write_bytes(confused, draw_confusions(evaluation.answers, evaluation.class_names))
        files.write_bytes(reliable, draw_reliability(evaluation.figures.reliability))
    for name in filter(None, (options.json, options.csv, options.pictures)):
        print(f"wrote {name}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
