"""Draws what the model sees: a batch of training views beside the same examples in evaluation, with labels.

python -m effnet_jax.preview --config=configs/quickstart.py --out=batch.png [--phase=blocks] [--step=0] [--count=24]
    [--config.augment.flip=False …]
"""

import argparse
import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax import files
from effnet_jax.data.augment import resize_on_device
from effnet_jax.data.augment_settings import AugmentSettings
from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.base import ArraySource, Source, typical_side
from effnet_jax.errors import ConfigError, WeightsError, nearest, run_command
from effnet_jax.train.config import check_config
from effnet_jax.train.initial import check_weights
from effnet_jax.train.phases import Phase, make_phases
from effnet_jax.train.step.steps import view_keys
from effnet_jax.weights.metadata import Metadata


@dataclasses.dataclass(frozen=True)
class Views:
    """Images as the model gets them, float32 [N, R, R, 3] in about 0..255, each with its caption.

    Attributes:
      title: what the picture shows.
      training: augmented views.
      training_captions: their classes, with shares where examples are mixed.
      evaluation: the same examples as evaluation would show them.
      evaluation_captions: their classes.
    """

    title: str
    training: np.ndarray
    training_captions: list[str]
    evaluation: np.ndarray
    evaluation_captions: list[str]


def collect_views(config: Any, *, phase: str = "", step: int = 0, count: int = 24) -> Views:
    """Makes the views of one training step, exactly those of the run, and the evaluation views of its examples.

    Args:
      config: from a recipe; checked here.
      phase: name of the phase whose augmentation is shown; `""`: the first.
      step: of the run; its batch is taken.
      count: how many examples at most.

    Returns:
      The views.

    Raises:
      ConfigError: a config that cannot work, or no such phase.
      DataError: data that cannot be read.
    """
    config = check_config(config)
    names = [keys["name"] for keys in config.phases]
    if phase and phase not in names:
        raise ConfigError(f"the config has no phase {phase!r}: {nearest(phase, names)}")
    source = open_source(config.data, "train")
    phases = make_phases(config, {"train": len(source)}, _weights(config), typical_side(source), source)
    chosen = phases[names.index(phase) if phase else 0]
    return make_views(chosen, source, name=Path(config.data.name).name, seed=config.seed, step=step, count=count)


def make_views(phase: Phase, source: Source, *, name: str, seed: int, step: int, count: int) -> Views:
    """Makes the first views of a training step, exactly those of the run, and the evaluation views of their examples.

    Args:
      phase: resolved.
      source: the training images.
      name: of the data set, for the title.
      seed: of the run.
      step: of the run.
      count: how many examples at most.

    Raises:
      DataError: data that cannot be read.
    """
    resolution = phase.resolution
    # Mixing takes partners in pairs of neighbours.
    rows = np.arange(min(count + count % 2, phase.feed.batch_size))
    with contextlib.closing(phase.feed.training(source, step, rows)) as batches:
        batch = next(batches)
    augment = jax.jit(phase.make_augment(len(source.class_names)))
    repeats = phase.feed.sampling == "balanced"
    keys = view_keys(seed, jnp.int32(step), jax.tree.map(jnp.asarray, batch), phase.views, repeats=repeats)
    training, targets = augment(batch, keys)
    positions = batch["index"][:count]
    (evaluation,) = phase.feed.evaluating(_picked(source, positions), len(positions))
    images = jnp.asarray(evaluation["image"])
    if images.dtype == jnp.uint8:
        images = resize_on_device(images, resolution)
    off = dataclasses.asdict(AugmentSettings())
    used = {key: value for key, value in phase.augment.items() if value != off[key]}
    described = ", ".join(f"{key} {value}" for key, value in used.items()) or "no augmentation"
    return Views(
        title=f"{name}, phase {phase.name}, step {step}, {resolution}x{resolution}: {described}",
        training=np.asarray(training[: len(positions)]),
        training_captions=[_caption(target, source.class_names) for target in np.asarray(targets[: len(positions)])],
        evaluation=np.asarray(images),
        evaluation_captions=[source.class_names[label] for label in evaluation["label"]],
    )


def _weights(config: Mapping[str, Any]) -> Metadata | None:
    """What the weights say of themselves, where there are any."""
    try:
        return check_weights(config)
    except WeightsError as error:
        print(f"note: evaluation is drawn with the crop rule 'frac', since {error}")
        return None


def _picked(source: Source, positions: np.ndarray) -> Source:
    """A source of a few examples of another one."""
    if isinstance(source, ArraySource):
        return dataclasses.replace(source, images=source.images[positions], labels=source.labels[positions], ids=None)
    return dataclasses.replace(source, records=_Records(source.records, positions), labels=None)


@dataclasses.dataclass(frozen=True)
class _Records:
    records: Any
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def read_many(self, positions: np.ndarray) -> list[Any]:
        return self.records.read_many(self.positions[positions])

    def id(self, index: int) -> str:
        return self.records.id(int(self.positions[index]))


def _caption(target: np.ndarray, class_names: Sequence[str]) -> str:
    """The classes of a soft target; what label smoothing spreads over all of them is left out."""
    shares = target - target.min()
    shares = shares / max(shares.sum(), 1e-9)
    best = [index for index in np.argsort(-shares)[:2] if shares[index] > 0.005]
    if len(best) == 1:
        return class_names[best[0]]
    return "\n".join(f"{class_names[index]} {shares[index]:.0%}" for index in best)


def draw_views(views: Views, path: str | os.PathLike) -> None:
    """Draws a picture: training views on the left, the same examples in evaluation on the right.

    Args:
      views: from `collect_views`.
      path: the PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(views.training)
    columns = min(6, int(np.ceil(np.sqrt(count))))
    rows = -(-count // columns)
    # Two blocks with a gap of a third of an image between them.
    figure = Figure(figsize=(1.5 * (2 * columns + 0.3), 1.75 * rows + 0.9), dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows,
        2 * columns + 1,
        width_ratios=[1] * columns + [0.3] + [1] * columns,
        left=0.01,
        right=0.99,
        bottom=0.01,
        top=1 - 1.0 / (1.75 * rows + 0.9),
        wspace=0.06,
        hspace=0.3,
    )
    figure.text(0.01, 0.995, views.title, fontsize=10, va="top", wrap=True)
    blocks = (
        ("training", views.training, views.training_captions, 0),
        ("evaluation, the same examples", views.evaluation, views.evaluation_captions, columns + 1),
    )
    for name, images, captions, first in blocks:
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            axes = figure.add_subplot(grid[index // columns, first + index % columns])
            axes.imshow(np.clip(image, 0, 255).astype(np.uint8), interpolation="nearest")
            axes.set_title(caption, fontsize=7, pad=2)
            axes.set_axis_off()
        left = figure.axes[-count].get_position().x0
        figure.text(left, 1 - 0.62 / (1.75 * rows + 0.9), name, fontsize=11, weight="bold", va="center")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    files.make_folder(files.as_path(path).parent)
    files.write_bytes(path, picture.getvalue())


def main() -> int:
    """Runs the command. Returns its exit status."""
    from effnet_jax.train.__main__ import parse_command

    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.preview",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="batch.png", help="the PNG file to write")
    parser.add_argument("--phase", default="", help="whose augmentation is shown; the first phase's by default")
    parser.add_argument("--step", type=int, default=0, help="the step of the run whose batch is shown")
    parser.add_argument("--count", type=int, default=24, help="how many examples at most")
    args, others = parser.parse_known_args()
    if args.count < 1 or args.step < 0:
        raise ConfigError("--count must be at least 1, --step at least 0")
    # The recipe and its overrides are read as in training; nothing is written to a run dir.
    config = parse_command([sys.argv[0], *others, "--workdir=unused"]).config
    draw_views(collect_views(config, phase=args.phase, step=args.step, count=args.count), args.out)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
