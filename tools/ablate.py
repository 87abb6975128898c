"""Runs the ablations of docs/results.md and draws one table and one picture of them.

    python tools/ablate.py runs/ablations --weights autoaugment_b0 --data-dir DIR [--only NAME …]

DIR is where tensorflow-datasets keeps CIFAR-100. Each arm with each seed is an ordinary run in OUT/<arm>/seed<k>, and
what it printed is in OUT/<arm>/seed<k>.log. A run that was stopped goes on, one that is finished is not run again, and
an arm that several ablations share is run once. OUT/ablations.md, .json and .png are drawn from the finished runs.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from effnet_jax import files
from effnet_jax.errors import RunError, run_command
from effnet_jax.model.efficientnet import create_model
from effnet_jax.train import phases
from effnet_jax.train.config import check_config, default_config, phase
from effnet_jax.train.config.checks import make_plan
from effnet_jax.train.loop import train
from effnet_jax.train.rundir.log import read_rows
from effnet_jax.train.rundir.workdir import SUMMARY, check_workdir
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.weights.store import read_metadata

COST = (
    "On a CPU core of its own a run of B0 takes half a minute to two minutes; all, with three seeds, about 40 minutes."
)
BATCH_SIZE = 64
SIZES = {"train": 1280, "validation": 1000, "resolution": 64}
SMOKE = {"train": 64, "validation": 32, "resolution": 32}


# ---- what is compared

Keys = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """A recipe: keys of its phases, keys of the config, and whether only a part of each block is trained."""

    phases: tuple[Keys, ...]
    config: Keys = dataclasses.field(default_factory=dict)
    split_blocks: bool = False


# fmt: off
HEAD = {"name": "head", "train": ("classifier",), "epochs": 2.0, "learning_rate": 0.05}
BLOCKS = {"name": "blocks", "train": ("block4:",), "epochs": 3.0, "learning_rate": 0.01, "warmup": 0.5}
AT_ONCE = {**BLOCKS, "name": "at_once", "epochs": 5.0}
SCRATCH = {"name": "scratch", "train": ("all",), "epochs": 5.0, "learning_rate": 0.01, "warmup": 1.0}
# The original's recipe for ImageNet. Its rate is for 256 images a step.
ORIGINAL = {
    "name": "original", "train": ("block4:",), "epochs": 5.0, "optimizer": "rmsprop", "momentum": 0.9,
    "weight_decay": 1e-5, "learning_rate": 0.016, "scale_learning_rate": True, "schedule": "exponential",
}

ARMS = {
    "baseline": Arm((HEAD, BLOCKS), {"ema": 0.99}),
    "batch-norm-trained": Arm((HEAD, {**BLOCKS, "batch_norm": "train"}), {"batch_norm_momentum": 0.9}),
    "split-blocks": Arm((HEAD, BLOCKS), split_blocks=True),
    "whole-blocks": Arm((HEAD, {**BLOCKS, "train": ("block6c:",)})),
    "scratch": Arm((SCRATCH,), {"weights": "", "batch_norm": "train", "batch_norm_momentum": 0.9, "ema": 0.99}),
    "at-once": Arm((AT_ONCE,)),
    "rmsprop": Arm((ORIGINAL,)),
    "phased": Arm((
        HEAD,
        {**BLOCKS, "name": "block7", "train": ("block7:",), "epochs": 1.0},
        {**BLOCKS, "name": "block5", "train": ("block5:",), "epochs": 1.0},
        {**BLOCKS, "name": "block4", "epochs": 1.0},
    )),
    "batch-128": Arm(({**HEAD, "learning_rate": 0.1}, {**BLOCKS, "learning_rate": 0.02}), {"batch_size": 128}),
}


class Row(NamedTuple):
    """One line of the table: an arm, and what of it is evaluated."""

    label: str
    arm: str
    split: str = "validation"


# The first row of each is what the others are compared with.
ABLATIONS = {
    "batch-norm": ("Batch norm in reopened blocks", (
        Row("stored statistics", "baseline"),
        Row("trained with the batch", "batch-norm-trained"),
    )),
    "blocks": ("Blocks reopened whole, or half of each", (
        Row("block4 to the output, whole", "baseline"),
        Row("block4 to the output, second halves", "split-blocks"),
        Row("block6c to the output, whole", "whole-blocks"),
    )),
    "transfer": ("Transfer", (
        Row("ImageNet weights", "baseline"),
        Row("from scratch", "scratch"),
    )),
    "ema": ("Moving averages (EMA), transfer", (
        Row("weights as they are", "baseline"),
        Row("EMA", "baseline", "validation_ema"),
    )),
    "ema-scratch": ("Moving averages (EMA), from scratch", (
        Row("weights as they are", "scratch"),
        Row("EMA", "scratch", "validation_ema"),
    )),
    "optimizer": ("Optimizer, block4 to the output from the first step", (
        Row("SGD", "at-once"),
        Row("RMSProp as in the original, 0.016 for 256 images", "rmsprop"),
    )),
    "reopening": ("How blocks are reopened", (
        Row("classifier, then block4 to the output", "baseline"),
        Row("classifier, block7, block5, block4", "phased"),
        Row("all of them from the first step", "at-once"),
    )),
    "batch-size": ("Images a step, rates in proportion", (
        Row("64", "baseline"),
        Row("128", "batch-128"),
    )),
}
# fmt: on


class SplitBlocks(FreezePlan):
    """What the package refuses: of each trained block, the layers before its squeeze-and-excite stay frozen."""

    def is_trained(self, path):  # noqa: D102
        first_half = path[0].startswith("block") and path[1] in ("expand_conv", "depthwise_conv")
        return super().is_trained(path) and not first_half


def split_plan(config: Keys, keys: Keys) -> FreezePlan:
    """A phase's plan with its blocks split."""
    plan = make_plan(config, keys)
    return SplitBlocks(plan.variant, plan.trained, plan.batch_norm)


# ---- runs


def make_config(arm: Arm, seed: int, args: argparse.Namespace) -> ConfigDict:
    """The config of one run."""
    config = default_config()
    config.variant = read_metadata(args.weights).variant
    config.weights = args.weights
    config.seed = seed
    config.resolution = args.resolution
    config.batch_size = BATCH_SIZE
    config.data.name = "cifar100"
    config.data.data_dir = args.data_dir
    config.data.train = f"train[:{args.train}]"
    config.data.validation = f"train[-{args.validation}:]"
    config.data.test = ""  # recipes are compared here: the test split is for the one that is chosen
    config.augment.flip = True
    config.augment.shift = 0.1
    config.update(arm.config)
    config.phases = tuple(phase(**keys) for keys in arm.phases)
    return config


def run_folder(out: Path, arm: str, seed: int) -> Path:
    return out / arm / f"seed{seed}"


def run(name: str, seed: int, args: argparse.Namespace) -> str:
    """Trains one arm with one seed, or goes on with it. Returns a line to print.

    A loss that is no number is a result too: its log has it, and the other runs go on.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # phases that several arms share are compiled once
        jax.config.update("jax_compilation_cache_dir", str(args.out.resolve() / ".xla"))
    arm, folder = ARMS[name], run_folder(args.out, name, seed)
    config = make_config(arm, seed, args)
    if check_workdir(files.as_path(folder), check_config(config))[1]:
        return f"{folder} is finished"
    if diverged(folder):
        return f"{folder} has diverged"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if arm.split_blocks:
            stack.enter_context(mock.patch.object(phases, "make_plan", split_plan))
        log = stack.enter_context(open(f"{folder}.log", "a", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(log))
        try:
            seconds = train(config, folder)["seconds"]
        except RunError as error:
            log.write(f"stopped: {error}\n")
            return f"{folder} stopped: {error}"
    return f"{folder} took {seconds:.0f} s"


def diverged(folder: Path) -> bool:
    """Whether a run ended at a loss that is no number: that is its result, and it is not run again."""
    log = Path(f"{folder}.log")
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return bool(lines) and lines[-1].startswith("stopped: ") and "not finite" in lines[-1]


def run_all(names: list[str], args: argparse.Namespace) -> None:
    """Runs arms with all seeds, the first seed of each first, so that an early table has every arm."""
    wanted = [(name, seed, args) for seed in range(args.seeds) for name in names]
    if args.jobs == 1:
        for number, job in enumerate(wanted, 1):
            print(f"{number}/{len(wanted)} {run(*job)}", flush=True)
            jax.clear_caches()  # no program is used again, and each holds memory
        return
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for number, line in enumerate(pool.map(run, *zip(*wanted, strict=True)), 1):
            print(f"{number}/{len(wanted)} {line}", flush=True)


# ---- what came of them


def collect(names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Reads the finished runs of the named ablations: what `ablations.json` holds."""
    sizes = {key: getattr(args, key) for key in SIZES}
    result: dict[str, Any] = {**sizes, "batch_size": BATCH_SIZE, "weights": args.weights, "ablations": {}}
    for name in names:
        title, rows = ABLATIONS[name]
        found = [{**row._asdict(), **measure(row, args)} for row in rows]
        first = found[0]["end"]
        for row in found[1:]:  # seed by seed: the same order of the same images
            row["difference"] = {seed: row["end"][seed] - first[seed] for seed in row["end"] if seed in first}
        result["ablations"][name] = {"title": title, "rows": found}
    return result


def measure(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Reads the runs of one row.

    Returns:
      `trained`: parameters that the last phase trains. By seed: `first` and `end`, accuracy in per cent after the first
      epoch with more than the classifier and at the end; `loss`, the mean of that first epoch in training. `notes`: the
      advice that the runs printed, and why one stopped.
    """
    arm = ARMS[row.arm]
    opened = next(keys["name"] for keys in arm.phases if keys["name"] != HEAD["name"])
    first: dict[int, float] = {}
    end: dict[int, float] = {}
    loss: dict[int, float] = {}
    notes: list[str] = []
    classes = 0
    for seed in range(args.seeds):
        folder = run_folder(args.out, row.arm, seed)
        log = Path(f"{folder}.log")
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        finished = (folder / SUMMARY).exists()
        kinds = ("advice: ",) if finished else ("stopped: ",)
        notes += [f"seed {seed}, {line}" for line in dict.fromkeys(lines) if line.startswith(kinds)]
        if finished:
            classes = len(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["class_names"])
            epochs = read_rows(folder)
            evaluated = [each for each in epochs if each["split"] == row.split]
            first[seed] = 100 * next(each["accuracy"] for each in evaluated if each["phase"] == opened)
            end[seed] = 100 * evaluated[-1]["accuracy"]
            trained = [each for each in epochs if each["split"] == "train" and each["phase"] == opened]
            loss[seed] = trained[0]["loss"]
    parameters = trained_parameters(arm, args, classes) if classes else 0
    state = "finished" if end else "stopped" if notes else "not run"
    figures = {"first": first, "end": end, "loss": loss}
    return {"state": state, "trained": parameters, "classes": classes, **figures, "notes": notes}


def trained_parameters(arm: Arm, args: argparse.Namespace, classes: int) -> int:
    """How many parameters the last phase of an arm trains."""
    config = check_config(make_config(arm, 0, args))
    plan = (split_plan if arm.split_blocks else make_plan)(config, config.phases[-1])
    return sum(unit["trained"] for unit in plan.table(parameter_shapes(config.variant, classes)))


@functools.cache
def parameter_shapes(variant: str, classes: int) -> Keys:
    """The parameters of a variant, as shapes."""
    model = create_model(variant, num_classes=classes)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]


def spread(values: Mapping[int, float], digits: int = 1, sign: str = "") -> str:
    """Mean and standard deviation of the seeds in words: `43.4 ± 0.8`."""
    if not values:
        return ""
    numbers = list(values.values())
    kind = "f" if max(map(abs, numbers)) < 1e4 else "e"
    deviation = f" ± {statistics.stdev(numbers):.{digits}{kind}}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):{sign}.{digits}{kind}}{deviation}"


def table(result: Keys) -> str:
    """The markdown of what was collected."""
    head = "arm | trained | at the end, % | against the first arm | after the first epoch, % | its loss | seeds"
    side = result["resolution"]
    lines = [
        f"Validation accuracy on CIFAR-100 at {side}×{side}: {result['train']:,} images for training,",
        f"{result['validation']:,} for validation, {result['batch_size']} a step unless an arm says another.",
        "Mean ± standard deviation over seeds. *trained*: parameters that the last phase trains.",
        "*against the first arm*: points, seed by seed. *first epoch*: the first that trains more than the classifier;",
        "*its loss*: in training.",
        "",
        f"| {head} |",
        "|---|" + "---:|" * head.count("|"),
    ]
    notes = {}
    for ablation in result["ablations"].values():
        lines.append(f"| **{ablation['title']}** |" + " |" * head.count("|"))
        for row in ablation["rows"]:
            cells = [row["label"], f"{row['trained']:,}" if row["trained"] else "", spread(row["end"]) or row["state"]]
            cells += [spread(row.get("difference", {}), sign="+"), spread(row["first"]), spread(row["loss"], 2)]
            lines.append(f"| {' | '.join([*cells, str(len(row['end']))])} |")
            notes[row["arm"]] = row["notes"]
    classes = max(row["classes"] for ablation in result["ablations"].values() for row in ablation["rows"])
    lines += ["", f"Guessing has a loss of log({classes}) = {math.log(classes):.3f}.", ""] if classes else [""]
    lines += ["What the runs said:", "", *(f"- {arm}, {note}" for arm in notes for note in notes[arm])]
    return "\n".join(lines) + "\n"


def draw(result: Keys, path: Path) -> None:
    """Draws a line for each arm: its seeds, their mean and standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ablations = list(result["ablations"].values())
    count = sum(len(ablation["rows"]) + 1.6 for ablation in ablations)
    figure = Figure(figsize=(9.5, 0.9 + 0.27 * count), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    y, places, labels = 0.0, [], []
    for ablation in ablations:
        axes.text(0, y, ablation["title"], transform=axes.get_yaxis_transform(), va="center", weight="bold")
        y += 1
        for index, row in enumerate(ablation["rows"]):
            colour = "#0072B2" if index == 0 else "#D55E00"  # the first arm and the others (Okabe and Ito)
            values = list(row["end"].values())
            places.append(y)
            labels.append(row["label"])
            axes.axhline(y, color="#e6e6e6", linewidth=0.8, zorder=0)
            style: dict[str, Any] = {
                "transform": axes.get_yaxis_transform(),
                "va": "center",
                "color": colour,
                "fontsize": 9,
            }
            axes.text(1.02, y, spread(row["end"]) or row["state"], **style)
            if values:
                mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
                axes.plot([mean - deviation, mean + deviation], [y, y], color=colour, linewidth=8, alpha=0.25, zorder=2)
                axes.scatter([mean], [y], s=150, color=colour, marker="|", linewidth=2, zorder=3)
                axes.scatter(values, [y] * len(values), s=20, color=colour, alpha=0.75, linewidth=0, zorder=4)
            y += 1
        y += 0.6
    axes.set_yticks(places, labels)
    axes.set_ylim(y - 0.6, -0.8)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("validation accuracy (%): dots are seeds, bars their mean, bands ± one standard deviation")
    axes.spines[["top", "right", "left"]].set_visible(False)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=130)
    partial.replace(path)


# ---- the command


def parse_arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"{COST} Ablations: {', '.join(ABLATIONS)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("out", type=Path, help="where runs, table and picture go")
    parser.add_argument("--weights", required=True, help="a weights dir of B0, or of another variant with its blocks")
    parser.add_argument("--data-dir", default="", help="where tensorflow-datasets keeps its sets")
    parser.add_argument(
        "--only", nargs="+", default=list(ABLATIONS), choices=ABLATIONS, metavar="NAME", help="these ablations alone"
    )
    parser.add_argument("--seeds", type=int, default=0, help="how many; 3, or 1 in a smoke run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--smoke", action="store_true", help="a step or two an arm, to see that everything works")
    args = parser.parse_args()
    args.seeds = args.seeds or (1 if args.smoke else 3)
    for key, value in (SMOKE if args.smoke else SIZES).items():
        setattr(args, key, value)
    return args


def main() -> None:
    args = parse_arguments()
    run_all(list(dict.fromkeys(row.arm for name in args.only for row in ABLATIONS[name][1])), args)
    result = collect(args.only, args)
    text = table(result)
    files.write_json(args.out / "ablations.json", result)
    (args.out / "ablations.md").write_text(text, encoding="utf-8")
    draw(result, args.out / "ablations.png")
    print(f"\n{text}\nwrote {args.out / 'ablations.md'}, ablations.json and ablations.png")


if __name__ == "__main__":
    run_command(main)
