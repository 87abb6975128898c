"""`report.html` at the end of a run, and what the command for older runs shares with it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from effnet_jax.data.sources.base import Source
from effnet_jax.data.view import EvaluationView
from effnet_jax.errors import in_brief
from effnet_jax.metrics.evaluation import Evaluation
from effnet_jax.preview import make_views
from effnet_jax.report.page import REPORT, Material, make_page, write_page
from effnet_jax.report.pictures import to_levels
from effnet_jax.report.sections import SEEN
from effnet_jax.report.story import TrainingViews
from effnet_jax.train.commands import command
from effnet_jax.train.judging import Judged
from effnet_jax.train.phases import Phase
from effnet_jax.train.run import Run
from effnet_jax.train.rundir.export import WEIGHTS
from effnet_jax.train.story import read_story
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import read_metadata


def report_run(run: Run, judged: Mapping[str, Judged], image: str) -> str | None:
    """Writes the report of a run that is finished: its weights and its summary are in the run dir.

    Args:
      run: what the run worked with.
      judged: its weights by name of their folder, its own first.
      image: a file to be classified, for the command; `""`: none is known.

    Returns:
      Why it is missing and the command that makes it, if so: a page is no reason to lose a run.
    """
    evaluations = {name: of.evaluations for name, of in judged.items() if of.evaluations}
    if not evaluations:
        return None
    run.screen.say(f"writing {REPORT} …")
    try:
        metadata = read_metadata(run.workdir / WEIGHTS)
        material = material_of(run.config, evaluations, run.sources, run.phases[-1], metadata)
        write_page(run.workdir / REPORT, make_page(read_story(run.workdir, image), material))
    except Exception as error:  # whatever images, fonts or a full disk raise
        return f"{REPORT} was not written ({in_brief(error)}). This makes it: {command('report', run.workdir)}"
    return None


def material_of(
    config: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    sources: Mapping[str, Source],
    phase: Phase,
    metadata: Metadata,
) -> Material:
    """Gathers what a page shows.

    Args:
      config: of the run, with `data.name` where the data is.
      evaluations: by name of the weights and by split.
      sources: by split, the training split among them.
      phase: the last one.
      metadata: of the weights.
    """
    data = config["data"]
    return Material(
        evaluations=evaluations,
        sources=sources,
        view=EvaluationView(metadata.resolution, metadata.evaluation, metadata.crop, metadata.resize),
        training=_training_views(phase, sources["train"], str(data["name"]), int(config["seed"])),
        root=str(data["name"]),
        duplicates=data["duplicates"] != "off",
    )


def _training_views(phase: Phase, source: Source, name: str, seed: int) -> TrainingViews:
    """The first views of the first step of a phase."""
    # A dozen images are not worth a start of worker processes.
    few = dataclasses.replace(phase, feed=dataclasses.replace(phase.feed, workers=0))
    views = make_views(few, source, name=epath.Path(name).name, seed=seed, step=phase.start, count=SEEN)
    return TrainingViews(views.title, [to_levels(image) for image in views.training], views.training_captions)
