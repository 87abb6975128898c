"""A finished run, read from its run dir and told in plain values for `report.html`."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from effnet_jax import files, trees
from effnet_jax.data.augment_settings import AugmentSettings
from effnet_jax.errors import RunError
from effnet_jax.metrics.figures import percent
from effnet_jax.model.variants import VARIANTS
from effnet_jax.report.story import PhaseStory, Story
from effnet_jax.train import advice
from effnet_jax.train.commands import command
from effnet_jax.train.config import check_config
from effnet_jax.train.config.checks import augment_settings, make_plan, sampling_of
from effnet_jax.train.config.differences import with_defaults
from effnet_jax.train.meter import duration
from effnet_jax.train.rundir.attempts import ATTEMPTS, read_attempts
from effnet_jax.train.rundir.checkpoints import best_step, list_steps
from effnet_jax.train.rundir.export import WEIGHTS
from effnet_jax.train.rundir.identity import DATA
from effnet_jax.train.rundir.log import CURVES, METRICS, read_rows
from effnet_jax.train.rundir.skipped import SKIPPED
from effnet_jax.train.rundir.workdir import CONFIG, SUMMARY, read_run_json
from effnet_jax.train.step.optimizers import unit_factors
from effnet_jax.weights.metadata import METADATA_FILE
from effnet_jax.weights.names import parameter_shapes

EVALUATION = "evaluation.json"
_LINKED = (SUMMARY, EVALUATION, METRICS, CURVES, CONFIG, DATA, ATTEMPTS, SKIPPED, f"{WEIGHTS}/{METADATA_FILE}")

Row = Mapping[str, Any]


def read_story(folder: epath.Path, image: str = "") -> Story:
    """Reads what a finished run has left.

    Args:
      folder: the run dir.
      image: a file that the command for prediction takes as its example; `""`: none is known.

    Raises:
      RunError: no run dir, one of a run that is not finished, or a damaged one.
      EffnetError: a config that this version cannot read.
    """
    raw = read_run_json(folder / CONFIG, "take it from a backup")
    if raw is None:
        raise RunError(f"{folder} is no run dir (it has no {CONFIG}): give the --workdir of a finished training")
    summary = read_run_json(folder / SUMMARY, "start the training again, which writes it anew")
    if summary is None or not (folder / WEIGHTS / METADATA_FILE).exists():
        raise RunError(
            f"the run in {folder} is not finished: the command that began it goes on with it, and writes its report at "
            f"the end (weights of its newest checkpoint: {command('export', folder, 'OUT')})"
        )
    config = check_config(with_defaults(raw))
    rows, place = read_rows(folder), files.absolute(folder)
    better = better_before(place, rows, summary.get("steps", 0))
    return Story(
        name=place.name,
        data=str(config.data.name),
        config=raw,
        summary=summary,
        rows=rows,
        phases=_phases(config, summary),
        advice=[
            *advise(config, rows, len(summary.get("class_names") or ()) or config.num_classes),
            *([f"{better.words}: a command below exports the weights that did best."] if better else []),
        ],
        commands=_commands(place, image, "test" if "test" in summary["images"] else "validation", better),
        provenance=_provenance(place, config, summary),
        files=[name for name in _LINKED if (folder / name).exists()],
    )


def _phases(config: Any, summary: Mapping[str, Any]) -> list[PhaseStory]:
    classes = len(summary.get("class_names") or ()) or config.num_classes or 1
    shapes = parameter_shapes(VARIANTS[config.variant], classes)
    # Shapes without memory: only how many parameters there are is asked.
    params = trees.nest({path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()})["params"]
    told = []
    for keys, results in zip(config.phases, summary["phases"], strict=False):
        plan = make_plan(config, keys)
        factors = unit_factors(plan, keys["layer_decay"], keys["factors"])
        units = [{**row, "factor": factors.get(row["unit"])} for row in plan.table(params)]
        splits = {split: figures for split, figures in results.items() if split != "name"}
        told.append(PhaseStory(str(keys["name"]), _settings(config, keys), units, splits))
    return told


def _settings(config: Any, keys: Any) -> dict[str, str]:
    """What a phase did, in words; what is off is left out."""
    off = AugmentSettings()
    used = {name: value for name, value in augment_settings(config, keys).items() if value != getattr(off, name)}
    warmup = f", warm-up {keys['warmup']:g}" if keys["warmup"] else ""
    told = {
        "trained": ", ".join(keys["train"]),
        "length": f"{keys['steps']:,} steps" if keys["steps"] else f"{keys['epochs']:g} epochs",
        "optimizer": f"{keys['optimizer']}, momentum {keys['momentum']:g}",
        "learning rate": f"{keys['learning_rate']:g}, {keys['schedule']}{warmup}",
        "weight decay": f"{keys['weight_decay']:g}" if keys["weight_decay"] else "",
        "resolution": str(keys["resolution"] or config.resolution or VARIANTS[config.variant].resolution),
        "batch": str(config.batch_size),
        "augmentation": ", ".join(f"{name} {_short(value)}" for name, value in used.items()) or "none",
        "sampling": sampling_of(config, keys) if sampling_of(config, keys) != "natural" else "",
        "views": f"{keys['views']}" + (f", cached ({keys['cache']})" if keys["cache"] else "") if keys["views"] else "",
        "sharpness-aware": f"rho {keys['sam']:g}" if keys["sam"] else "",
        "clipped at": f"{keys['clip_norm']:g}" if keys["clip_norm"] else "",
    }
    return {key: value for key, value in told.items() if value}


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return "–".join(f"{part:g}" for part in value) if all(isinstance(p, int | float) for p in value) else str(value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def advise(config: Any, rows: Sequence[Row], num_classes: int) -> list[str]:
    """Returns the advice that a run gave while it went on, from its rows.

    Args:
      config: checked.
      rows: of `metrics.jsonl`.
      num_classes: of the data.
    """
    told: list[str] = []
    before: Row | None = None  # validation at the end of the phase before
    resolution = None
    for keys in config.phases:
        own = [row for row in rows if row["phase"] == keys["name"]]
        train = [row for row in own if row["split"] == "train" and row.get("loss") is not None]
        validation = [row for row in own if row["split"] == "validation" and row.get("accuracy") is not None]
        said: list[str] = []
        for index, row in enumerate(train):
            said += advice.above_guessing(keys, train[index - 1] if index else {}, row, num_classes)
        size = keys["resolution"] or config.resolution
        if validation and train and validation[0]["step"] == train[0]["step"] and size == resolution:
            said += advice.at_border(before, validation[0], make_plan(config, keys).batch_norm)
        if train and validation:
            said += advice.at_end(keys, config.batch_size, train[-1], validation[-1])
        before, resolution = (validation[-1] if validation else before), size
        told += [f"{keys['name']}: {sentence}." for sentence in said]
    return told


class Better(NamedTuple):
    """An earlier checkpoint that did better on the validation split than the last: in words, and what exports it."""

    words: str
    command: str


def better_before(folder: epath.Path, rows: Sequence[Row], last: int) -> Better | None:
    """Finds a checkpoint of a run whose validation accuracy was better than the last one.

    Args:
      folder: the run dir.
      rows: of `metrics.jsonl`.
      last: step of the run's end.
    """
    known = {row["step"]: row for row in rows if row["split"] == "validation" and row.get("accuracy") is not None}
    accuracies = {step: row["accuracy"] for step, row in known.items()}
    best = best_step(list_steps(folder), accuracies)
    if best is None or last not in known or accuracies[best] <= accuracies[last]:
        return None
    at = f"{percent(accuracies[best])} after epoch {known[best]['epoch']:.0f}"
    words = f"the best validation accuracy was {at}, the last {percent(accuracies[last])}"
    return Better(words, command("export", folder, f"{folder}-best", "--step", "best"))


def _commands(folder: epath.Path, image: str, split: str, better: Better | None) -> list[tuple[str, str]]:
    weights = folder / WEIGHTS
    other = f"{folder if files.is_local(folder) else folder.name}-timm"  # other programs' formats are written to a disk
    asked = [] if split == "test" else [f"--split={split}"]
    predict = f"{command('predict', weights, '--top', 3)} {shlex.quote(image) if image else 'IMAGE…'}"
    return [
        ("Classify photographs, files or folders", predict),
        (
            "Measure the weights again, or on other data (--config.data.name=…), with a line for each image",
            command("evaluate", folder, *asked, f"--csv={folder / 'answers.csv'}"),
        ),
        *([(f"The weights that did best: {better.words}", better.command)] if better else []),
        (
            "Weights for other programs: timm, keras, tf1, onnx, savedmodel, litert, stablehlo",
            command("export", weights, other, "--format=timm"),
        ),
        ("This page anew", command("report", folder)),
    ]


def _provenance(folder: epath.Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    source = summary.get("weights_source") or {}
    began = source.get("name") or source.get("run") or config["weights"]
    if summary.get("weights_source") is None:
        began = "random values"
    images = ", ".join(f"{count:,} {split}" for split, count in (summary.get("images") or {}).items())
    seconds = summary.get("seconds")
    told = [
        ("run dir", str(folder)),
        ("images", images),
        ("weights began as", str(began)),
        *((f"sha256 of {name}", str(value)) for name, value in _hashes(source)),
        ("took", duration(seconds) if isinstance(seconds, int | float) and math.isfinite(seconds) else ""),
        ("steps", f"{summary['steps']:,}" if "steps" in summary else ""),
    ]
    for number, attempt in enumerate(read_attempts(folder) or [summary.get("provenance") or {}], 1):
        name = "attempt" if number == 1 else f"attempt {number}"
        machine, versions = attempt.get("machine") or {}, attempt.get("versions") or {}
        told += [
            (f"{name}: began", _joined(attempt.get("started"), _after(attempt.get("after_step")))),
            (f"{name}: machine", _joined(*(f"{key} {value}" for key, value in machine.items()))),
            (f"{name}: versions", _joined(*(f"{key} {value}" for key, value in versions.items()))),
            (f"{name}: commit", attempt.get("commit") or ""),
        ]
    return [(what, value) for what, value in told if value]


def _hashes(source: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = source.get("sha256")
    return list(found.items()) if isinstance(found, Mapping) else [("the weights", found)] if found else []


def _after(step: Any) -> str:
    return f"after step {step:,}" if step else ""


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)
