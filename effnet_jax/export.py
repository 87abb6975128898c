"""Makes a weights dir of any checkpoint of a run: `python -m effnet_jax.export RUN OUT`.

The run need not be finished. The run dir may be a local folder or gs://…, and so may OUT.
"""

import argparse
import dataclasses
from typing import Any

from etils import epath

from effnet_jax import files
from effnet_jax.errors import EffnetError, RunError, WeightsError, run_command
from effnet_jax.train.rundir.checkpoints import CHECKPOINTS, best_step, list_steps
from effnet_jax.train.rundir.log import read_rows
from effnet_jax.train.rundir.snapshot import Damage, flat_leaves, nested, read_checkpoint
from effnet_jax.train.rundir.workdir import CONFIG, read_run_json
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import write_weights

LATEST, BEST = "latest", "best"


def export_run(run: epath.PathLike, out: epath.PathLike, *, step: str | int = LATEST, ema: bool = False) -> Metadata:
    """Writes the weights of a checkpoint as a weights dir.

    Args:
      run: the run dir.
      out: the weights dir to make; it must not exist.
      step: of the checkpoint; `"latest"`, or `"best"` for the one with the best validation accuracy.
      ema: whether the moving averages are taken instead of the weights.

    Returns:
      The metadata of the weights dir.

    Raises:
      RunError: no run dir, no such checkpoint, or a damaged one.
      WeightsError: the run keeps no moving averages, a value is not finite, or the output exists.
    """
    folder = files.as_path(run)
    config = read_run_json(folder / CONFIG)
    if config is None:
        raise RunError(f"{folder} is no run dir (it has no {CONFIG}): give the --workdir of a training")
    chosen = choose_step(folder, step)
    try:
        record, leaves = read_checkpoint(folder / CHECKPOINTS / str(chosen))
    except Damage as damage:
        others = ", ".join(str(other) for other in list_steps(folder) if other != chosen) or "none"
        raise RunError(f"checkpoint {chosen} of {folder} is damaged ({damage}); others: --step {others}") from damage
    state = nested(leaves)
    if ema and "ema" not in state:
        raise WeightsError(f"{folder} keeps no moving averages: leave --ema out")
    variables = state["ema"] if ema else {kind: state[kind] for kind in ("params", "batch_stats")}
    check_finite(variables, f"checkpoint {chosen} of {folder}")
    metadata = metadata_of(record, config, folder)
    source = {**metadata.source, "step": chosen}
    return write_weights(out, variables, dataclasses.replace(metadata, ema=ema, source=source))


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


def main() -> int:
    """Runs the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="the run dir")
    parser.add_argument("out", metavar="OUT", help="the weights dir to make")
    parser.add_argument("--step", default=LATEST, help=f"{LATEST} (the default), {BEST}, or the step of a checkpoint")
    parser.add_argument("--ema", action="store_true", help="the moving averages instead of the weights")
    args = parser.parse_args()
    metadata = export_run(args.run, args.out, step=args.step, ema=args.ema)
    what = "moving averages" if metadata.ema else "weights"
    print(f"wrote {args.out}: {what} of step {metadata.source['step']}, {metadata.num_classes} classes")
    return 0


if __name__ == "__main__":
    run_command(main)
