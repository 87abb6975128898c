"""What a run leaves behind for its user: weights dirs, and the last words with the next command."""

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from effnet_jax.data.sources.base import Source
from effnet_jax.model.variants import FAMILIES, NORMALIZATIONS
from effnet_jax.train.config import to_json
from effnet_jax.train.meter import duration
from effnet_jax.train.report import Report, percent
from effnet_jax.train.state import TrainState, Variables
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import wait_for_all, write_weights


def trained_metadata(
    workdir: Path,
    config: Mapping[str, Any],
    parent: Metadata | None,
    class_names: Sequence[str],
    *,
    resolution: int,
    crop: str,
    direct: bool,
) -> Metadata:
    """Returns the metadata of trained weights: what their use asks for, and where they came from.

    Args:
      workdir: the run dir.
      config: of the run.
      parent: of the weights that the run started from, if any.
      class_names: of the data.
      resolution: that the run trained at.
      crop: the evaluation's crop rule.
      direct: whether images were brought whole to the resolution, as small ones are.
    """
    if parent is None:
        family = "lite" if config["variant"].startswith("lite") else "imagenet"
        parent = Metadata(config["variant"], family, FAMILIES[family].normalization, crop, resolution, len(class_names))
        origin = None
    else:
        origin = {"weights": config["weights"], "family": parent.family, "source": parent.source}
    assert parent.normalization in NORMALIZATIONS
    return dataclasses.replace(
        parent,
        crop=crop,
        resize="direct" if direct else "bicubic",
        resolution=resolution,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        ema=False,
        source={"run": workdir.name, "config": to_json(config), "parent": origin},
    )


def write_run_weights(workdir: Path, state: TrainState, metadata: Metadata) -> list[Path]:
    """Writes `weights/` and, where the run kept moving averages, `weights_ema/`. Returns their paths."""
    choices: list[tuple[str, Variables, bool]] = [("weights", state.variables, False)]
    if state.ema is not None:
        choices.append(("weights_ema", state.ema, True))
    paths = []
    for name, variables, ema in choices:
        path = workdir / name
        if jax.process_index() == 0:
            shutil.rmtree(path, ignore_errors=True)  # of an attempt that was stopped between here and its summary
        wait_for_all("room for weights made")
        write_weights(path, variables, dataclasses.replace(metadata, ema=ema))
        paths.append(path)
    return paths


def figures(summary: Mapping[str, Any]) -> str:
    """Returns the last accuracies of a summary in words."""
    shown = [
        f"{split.replace('_ema', ' (EMA)')} accuracy {percent(summary[split]['accuracy'])}"
        for split in ("test", "test_ema", "validation", "validation_ema")
        if split in summary
    ]
    return ", ".join(shown) or f"training accuracy {percent(summary['train']['accuracy'])}"


def say_goodbye(
    report: Report, summary: Mapping[str, Any], workdir: Path, weights: Path, sources: Mapping[str, Source]
) -> None:
    """Prints the accuracies of each phase, where the curves are, and the command that classifies an image."""
    report.say("")
    for phase in summary["phases"]:
        report.say(f"after {phase['name']}: {figures(phase)}")
    report.say(f"curves: {workdir / 'curves.png'}    figures: {workdir / 'summary.json'}    weights: {weights}")
    report.say(f"took {duration(summary['seconds'])}. Classify an image:")
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    image = example_image(sources.get("test") or sources["train"])
    command = shlex.join([str(python), "-m", "effnet_jax.predict", str(weights)])
    report.say(f"  {command} {shlex.quote(image) if image else 'IMAGE…'}")


def example_image(source: Source) -> str:
    """Returns the path of one image of a source, of its middle class; empty where its images are no files."""
    indices = list(range(len(source)))
    if source.labels is not None:
        indices = np.flatnonzero(np.asarray(source.labels) == len(source.class_names) // 2).tolist() or indices
    path = source.example_id(indices[len(indices) // 2])
    return path if Path(path).is_file() else ""
