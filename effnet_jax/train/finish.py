"""The end of a run: weights, the picture, the summary, and the last words with the next command."""

import dataclasses
import shlex
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from effnet_jax import files, hosts
from effnet_jax.metrics.figures import percent
from effnet_jax.report.page import REPORT
from effnet_jax.train.cache.fill import sweep_caches
from effnet_jax.train.commands import command, example_image
from effnet_jax.train.judging import HELD_BACK, Judged
from effnet_jax.train.meter import duration
from effnet_jax.train.reporting import report_run
from effnet_jax.train.run import Run, Standing
from effnet_jax.train.rundir.attempts import provenance, read_attempts
from effnet_jax.train.rundir.export import WEIGHTS, trained_metadata, write_run_weights
from effnet_jax.train.rundir.log import CURVES, read_rows
from effnet_jax.train.rundir.skipped import SKIPPED
from effnet_jax.train.rundir.workdir import SUMMARY
from effnet_jax.train.story import EVALUATION, better_before


def finish_run(run: Run, standing: Standing, judged: Mapping[str, Judged]) -> dict[str, Any]:
    """Writes what stays of a finished run, and says where it is.

    Args:
      run: what the run works with.
      standing: at its end.
      judged: its weights by name of their folder.

    Returns:
      The summary, as `summary.json` has it.
    """
    folder = run.workdir
    metadata = trained_metadata(folder.name, run.config, run.weights, run.sources["train"], run.phases[-1].feed)
    run.checkpoints.close()  # a last checkpoint that could not be written is told before the run calls itself finished
    write_run_weights(
        folder,
        {name: of.variables for name, of in judged.items()},
        {name: dataclasses.replace(metadata, temperature=of.temperature) for name, of in judged.items()},
    )
    run.skipped.exchange()
    sweep_caches(run)
    summary = summarise(run, standing)
    trouble = run.log.draw(now=True)
    example = example_image(run.sources.get("test") or run.sources["train"])
    with hosts.agree("the summary is written"):
        if hosts.is_first():
            run.log.flush()
            if evaluations := {name: _as_json(of) for name, of in judged.items() if of.evaluations}:
                files.write_json(folder / EVALUATION, evaluations)
            files.write_json(folder / SUMMARY, summary)
    # The run is finished: what comes now is made again by a command.
    with hosts.agree("the report is written"):
        unwritten = report_run(run, judged, example) if run.config.report and hosts.is_first() else None
    reported = run.config.report and unwritten is None and (folder / REPORT).exists()
    for line in closing_words(run, summary, example, reported):
        run.screen.say(line)
    for warning in filter(None, (trouble, unwritten)):
        run.screen.say(f"warning: {warning}")
    return summary


def _as_json(judged: Judged) -> dict[str, Any]:
    return {split: evaluation.as_json() for split, evaluation in judged.evaluations.items()}


def summarise(run: Run, standing: Standing) -> dict[str, Any]:
    """Returns the summary of a finished run, the same on every process but for its attempts."""
    results = standing.progress.results
    attempts = read_attempts(run.workdir) if hosts.is_first() else []
    after = attempts[-1]["after_step"] if attempts else 0
    return {
        **{split: figures for split, figures in results[-1].items() if split != "name"},
        "phases": results,
        "steps": int(standing.state.step),
        "class_names": run.class_names,
        "images": {split: len(source) for split, source in run.sources.items()},
        "skipped_images": run.skipped.images,
        "seconds": round(time.monotonic() - standing.began, 1),
        "first_step": standing.first_step,
        "resumed_after_step": after or None,
        "weights_source": dict(run.weights.source) if run.weights else None,
        "provenance": provenance(run.partition.mesh.size),
        "attempts": attempts,
    }


def figures(summary: Mapping[str, Any]) -> str:
    """Returns the last accuracies of a summary in words."""
    shown = [
        f"{split.replace('_ema', ' (EMA)')} accuracy {percent(summary[split]['accuracy'])}"
        for split in ("test", "test_ema", "validation", "validation_ema")
        if split in summary
    ]
    return ", ".join(shown) or f"training accuracy {percent(summary['train']['accuracy'])}"


def finished_words(workdir: epath.Path, summary: Mapping[str, Any]) -> str:
    """Says that a run was finished earlier, and where its figures and its report are, or how it gets one."""
    page, words = workdir / REPORT, f"{workdir} is finished: {figures(summary)}; see {workdir / SUMMARY}"
    if page.exists():
        return f"{words}\nreport: {page}"
    if set(HELD_BACK) & summary["images"].keys():
        return f"{words}\nIt has no report. This makes it: {command('report', workdir)}"
    return words


def closing_words(run: Run, summary: Mapping[str, Any], image: str, reported: bool) -> list[str]:
    """Says the accuracies of each phase, where report and curves are, and the command that classifies an image."""
    folder = run.workdir
    lines = ["", *(f"after {phase['name']}: {figures(phase)}" for phase in summary["phases"])]
    if run.skipped.images:
        lines.append(f"skipped images: {run.skipped}, listed in {folder / SKIPPED}")
    if hosts.is_first() and (better := better_before(folder, read_rows(folder), int(summary["steps"]))):
        lines.append(f"{better.words}. Weights of the best: {better.command}")
    if reported:
        lines.append(f"report: {folder / REPORT}")
    lines.append(f"curves: {folder / CURVES}    figures: {folder / SUMMARY}    weights: {folder / WEIGHTS}")
    lines.append(f"took {duration(summary['seconds'])}. Classify an image:")
    return [*lines, f"  {command('predict', folder / WEIGHTS)} {shlex.quote(image) if image else 'IMAGE…'}"]
