"""Makes the report of a finished run anew: `python -m effnet_jax.report RUN [--out FILE] [--config.data.name=…]`.

RUN is the run dir of a finished training, also of an older version. The weights are asked again about the validation
and the test split; the page tells of them what `report.html` at the end of a training does.

    python -m effnet_jax.report runs/quickstart
    python -m effnet_jax.report runs/quickstart --out=page.html --config.data.name=/where/the/data/is/now
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from effnet_jax import files
from effnet_jax.data.sources.base import Source, typical_side
from effnet_jax.errors import DataError, run_command
from effnet_jax.evaluate import data_config, evaluate_source, open_splits
from effnet_jax.metrics.evaluation import Evaluation
from effnet_jax.report.page import REPORT, make_page, write_page
from effnet_jax.train.commands import example_image
from effnet_jax.train.compiling import keep_for_next_time
from effnet_jax.train.config import check_config
from effnet_jax.train.config.differences import with_defaults
from effnet_jax.train.judging import HELD_BACK
from effnet_jax.train.phases import make_phases
from effnet_jax.train.reporting import material_of
from effnet_jax.train.rundir.export import WEIGHTS, WEIGHTS_EMA
from effnet_jax.train.rundir.identity import describe_run, identity_changes, read_identity
from effnet_jax.train.rundir.workdir import CONFIG, read_run_json
from effnet_jax.train.screen import Counting
from effnet_jax.train.story import read_story
from effnet_jax.weights.metadata import METADATA_FILE
from effnet_jax.weights.store import load_weights


def make_report(run: str, overrides: Sequence[str] = (), *, batch_size: int = 64, beside: bool = True) -> bytes:
    """Makes the page of a finished run from its run dir and its data.

    Args:
      run: the run dir.
      overrides: `--config.data.KEY=VALUE`, where the data is elsewhere now.
      batch_size: of the evaluation, of all devices together.
      beside: whether the page will lie in the run dir.

    Raises:
      RunError: no run dir, or a run that is not finished.
      DataError: the data is not where it was, or has other classes.
      ConfigError: an unknown key in `overrides`.
    """
    folder = files.as_path(run)
    summary = read_story(folder).summary
    config = with_defaults(read_run_json(folder / CONFIG))
    config["data"] = {**config["data"], **data_config(config, overrides).data}
    sources = _open(config, list(summary["images"]), summary["class_names"])
    changes = _changes(folder, config, sources)
    counts = {split: len(source) for split, source in sources.items()}
    train = sources["train"]
    phases = make_phases(check_config(config), counts, None, typical_side(train), train)
    evaluations: dict[str, dict[str, Evaluation]] = {}
    counting = Counting("evaluating")
    for name in (WEIGHTS, WEIGHTS_EMA):
        if not (folder / name / METADATA_FILE).exists():
            continue
        model, variables, metadata = load_weights(folder / name)
        for split in HELD_BACK:
            if split in sources:
                evaluations.setdefault(name, {})[split] = evaluate_source(
                    model,
                    variables,
                    metadata,
                    sources[split],
                    batch_size=batch_size,
                    workers=config["data"]["workers"],
                    tell=lambda done, total: counting(done),
                )
        if name == WEIGHTS:
            own = metadata
    story = read_story(folder, example_image(sources.get("test") or train))
    if changes:
        story = dataclasses.replace(story, provenance=[*story.provenance, ("data since the run", "; ".join(changes))])
    return make_page(
        story,
        material_of(config, evaluations, sources, phases[-1], own),
        beside=beside,
        tell=lambda what: print(f"{what} …", file=sys.stderr, flush=True),
    )


def _open(config: Mapping[str, Any], splits: Sequence[str], class_names: Sequence[str]) -> dict[str, Source]:
    """Opens the splits of a run."""
    sources = open_splits(config["data"], splits, class_names)
    if not set(HELD_BACK) & set(sources):
        raise DataError("the run has neither a validation nor a test split, so that there is nothing to report on")
    return sources


def _changes(folder: epath.Path, config: Mapping[str, Any], sources: Mapping[str, Source]) -> list[str]:
    """Returns, and tells, in what the data differs from that of the run."""
    began = read_identity(folder)
    if began is None:  # of a version that wrote nothing about it
        return []
    now = describe_run(sources, config["data"]["name"], None) | {"weights": began.get("weights")}
    changes = identity_changes(began, now)
    if changes:
        listed = "\n  ".join(changes)
        print(f"warning: the data has changed since {folder} was trained:\n  {listed}", file=sys.stderr)
    return changes


def main() -> int:
    """Runs the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="the run dir of a finished training")
    parser.add_argument("--out", default="", metavar="FILE", help=f"where to write the page (RUN/{REPORT})")
    parser.add_argument("--batch_size", type=int, default=64, help="of the evaluation (64)")
    options, others = parser.parse_known_args()
    if options.batch_size < 1:
        parser.error("--batch_size must be 1 or more")
    out = files.as_path(options.out) if options.out else files.as_path(options.run) / REPORT
    if options.out or out.parent.is_dir():  # no folder is made for a run that is not there
        files.check_writable(out)
    keep_for_next_time()
    beside = files.absolute(out).parent == files.absolute(options.run)
    write_page(out, make_report(options.run, others, batch_size=options.batch_size, beside=beside))
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    run_command(main)
