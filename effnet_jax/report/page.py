"""The page: all parts of it in one file, with its style and script, that asks no network for anything."""

import base64
import dataclasses
import hashlib
import importlib.resources
import os
from collections.abc import Callable, Mapping

from effnet_jax import files
from effnet_jax.data.sources.base import Source, expand
from effnet_jax.data.view import EvaluationView
from effnet_jax.report import sections
from effnet_jax.report.html import Html, join, tag
from effnet_jax.report.pictures import Gallery
from effnet_jax.report.story import Story, TrainingViews
from effnet_jax.report.twins import Twins, find_twins

REPORT = "report.html"

PARTS = (
    ("figures", "Figures"),
    ("curves", "Curves"),
    ("phases", "Phases"),
    ("classes", "Classes"),
    ("confusions", "Confusions"),
    ("calibration", "Calibration"),
    ("mistakes", "Worst mistakes"),
    ("labels", "Label errors"),
    ("seen", "What it sees"),
    ("advice", "Advice"),
    ("next", "What comes next"),
    ("provenance", "Provenance"),
)


@dataclasses.dataclass(frozen=True)
class Material:
    """What a page shows besides the run's story.

    Attributes:
      evaluations: by name of the weights, the run's own first, and by split; the test split is shown where there is
        one, else the validation split.
      sources: by split, those that were evaluated among them: where pictures come from.
      view: how the model sees an image in evaluation.
      training: what it sees in training, where that is known.
      root: where the data set is, below which images are named.
      duplicates: whether images with two labels are looked for.
    """

    evaluations: Mapping[str, sections.Evaluations]
    sources: Mapping[str, Source]
    view: EvaluationView
    training: TrainingViews | None = None
    root: str = ""
    duplicates: bool = True


def make_page(
    story: Story, material: Material, *, beside: bool = True, tell: Callable[[str], None] = lambda what: None
) -> bytes:
    """Makes the page of a finished run.

    Args:
      story: of the run.
      material: evaluations, and the images that they are of.
      beside: whether the page will lie in the run dir, so that it can link to its files.
      tell: hears what is done next.

    Returns:
      UTF-8.
    """
    evaluations, sources = material.evaluations, material.sources
    own = next(iter(evaluations.values()))
    answered = [name for name in ("test", "validation") if name in own and len(own[name].answers)]
    split = answered[0] if answered else next(iter(own))
    evaluation = own[split]
    galleries = {name: Gallery(source) for name, source in sources.items()}
    if material.duplicates:
        tell("looking for images with two labels")
    unsearched = Twins(notes=("Not looked for: data.duplicates is 'off'.",), searched=False)
    twins = find_twins(sources) if material.duplicates else unsearched
    root = os.path.join(expand(material.root or story.data), "")
    elsewhere = tag("code", "python -m effnet_jax.evaluate RUN --json=FILE")
    if "evaluation.json" in story.files:
        elsewhere = tag("a" if beside else "code", "evaluation.json", href="evaluation.json" if beside else None)
    tell("drawing the page")
    parts = [
        sections.headline(story, split, evaluation),
        sections.navigation(PARTS),
        sections.figures(evaluations, split),
        sections.learning(story),
        sections.phases(story),
        sections.classes(evaluation, elsewhere),
        sections.confusions(evaluation),
        sections.calibration(evaluation),
        sections.mistakes(evaluation, galleries[split], root),
        sections.suspects(own, galleries, twins, root),
        sections.seen(evaluation, galleries[split], material.view, material.training),
        sections.advice(story),
        sections.commands(story),
    ]
    gaps = {name: error for gallery in galleries.values() for name, error in gallery.gaps.items()}
    gaps |= {entry["id"]: entry["error"] for entry in evaluation.skipped[:100]}
    parts.append(sections.provenance(story, gaps, beside))
    return _document(story.name, join(parts)).encode()


def _document(title: str, body: Html) -> str:
    style, script = _resource("report.css"), _resource("report.js")
    # Nothing but what is here may run, and nothing is fetched, whatever a class or a file is called.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        Html('<meta charset="utf-8">'),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        Html('<link rel="icon" href="data:,">'),
        tag("title", f"{title}: report"),
        Html(f"<style>{style}</style>"),
    )
    return f'<!doctype html>\n<html lang="en">{head}<body>{body}<script>{script}</script></body></html>\n'


def _resource(name: str) -> str:
    return importlib.resources.files("effnet_jax.report").joinpath(name).read_text("utf-8")


def write_page(path: files.AnyPath, page: bytes) -> None:
    """Writes a page, whole or not at all; its folder is made."""
    files.make_folder(files.as_path(path).parent)
    files.write_bytes(path, page)
