"""Classifies images: `python -m effnet_jax.predict WEIGHTS IMAGE…`.

WEIGHTS is a weights dir, or the name of published weights.

IMAGE is a file, a folder (every image in it and below), or a glob pattern in quotes.
"""

import argparse
import dataclasses
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax.data import decode
from effnet_jax.data.sources.listing import Unread, walk
from effnet_jax.data.view import EvaluationView
from effnet_jax.errors import ConfigError, DataError, WeightsError, run_command
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import load_weights

BATCH_SIZE = 16  # images a step; also the number from which the command shows a progress bar

ImageLike = str | os.PathLike | np.ndarray


class Classifier:
    """A model with its weights and its preprocessing. Made by `load_classifier`.

    Attributes:
      class_names: the name of each class; numbers where the weights dir has no names.
      metadata: what the weights dir says about itself.
    """

    def __init__(
        self, path: str | os.PathLike, *, resolution: int = 0, batch_size: int = BATCH_SIZE, **settings: Any
    ) -> None:
        if resolution < 0 or batch_size < 1:
            raise ConfigError(f"resolution={resolution}, batch_size={batch_size}: both count from 1 up")
        model, variables, metadata = load_weights(path, **settings)
        if not metadata.num_classes:
            raise WeightsError(
                f"{path} has no classifier (it was ported with --notop): port it again without, or train one with "
                "python -m effnet_jax.train"
            )
        self.metadata: Metadata = dataclasses.replace(metadata, resolution=resolution or metadata.resolution)
        self._batch_size = batch_size
        self.class_names = metadata.class_names or tuple(str(index) for index in range(metadata.num_classes))
        self._variables = jax.device_put(variables)
        self._predict = jax.jit(
            lambda variables, images: jax.nn.softmax(jnp.asarray(model.apply(variables, images)) / metadata.temperature)
        )

    def __call__(self, images: Sequence[ImageLike] | np.ndarray) -> np.ndarray:
        """Classifies images.

        Args:
          images: paths, or arrays of [h, w, 3] with levels 0..255 in RGB, each of any size; also one array
            [N, h, w, 3].

        Returns:
          Probabilities, float32 [N, classes].

        Raises:
          DataError: an image that cannot be decoded, or an array of another shape.
        """
        if isinstance(images, str | os.PathLike):
            images = [images]
        batches = list(self.batches(images))
        return np.concatenate([*batches, np.empty((0, self.metadata.num_classes), np.float32)])

    def batches(self, images: Iterable[ImageLike]) -> Iterator[np.ndarray]:
        """Yields the probabilities of at most `batch_size` images at a time; arguments and errors as of a call."""
        images = list(images)
        # Single images and full batches are the only two shapes that are compiled.
        size = self._batch_size if len(images) > 1 else 1
        with ThreadPoolExecutor(min(size, os.cpu_count() or 1)) as pool:
            for start in range(0, len(images), size):
                pixels = list(pool.map(self._prepare, images[start : start + size]))
                batch = np.zeros((size, *pixels[0].shape), np.float32)
                batch[: len(pixels)] = pixels
                yield np.asarray(self._predict(self._variables, batch))[: len(pixels)]

    def _prepare(self, image: ImageLike) -> np.ndarray:
        """Returns what the model sees of an image: float32 [resolution, resolution, 3]."""
        image = decode.decode_image(image) if isinstance(image, str | os.PathLike) else np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(f"an image of shape {image.shape} cannot be classified: give [height, width, 3] in RGB")
        seen = self.metadata
        return EvaluationView(seen.resolution, seen.evaluation, seen.crop, seen.resize)(image)


def load_classifier(
    path: str | os.PathLike, *, resolution: int = 0, batch_size: int = BATCH_SIZE, **settings: Any
) -> Classifier:
    """Loads a weights dir as a function from images to probabilities.

    Args:
      path: the weights dir, or the name of published weights.
      resolution: side in pixels of what the model sees; 0: what its weights were made for.
      batch_size: images that are classified at a time.
      settings: of the model, as `create_model` takes them: `dtype="bfloat16"`, …

    Returns:
      `classify(list of paths or arrays)` -> probabilities [N, classes]; its `class_names` name the columns.

    Raises:
      WeightsError: no weights dir, a damaged one, or one without a classifier.
    """
    return Classifier(path, resolution=resolution, batch_size=batch_size, **settings)


def find_images(names: Iterable[str]) -> list[str]:
    """Returns the image files that names stand for, in order: files, folders (with all below), glob patterns.

    Raises:
      DataError: a name stands for nothing.
    """
    found: list[str] = []
    for name in names:
        if os.path.isdir(name):
            unread = Unread()
            inside = sorted(
                os.path.join(name, folder, file)
                for folder, names_here in walk(name, "", unread, lambda folder, status: None)
                for file in names_here
            )
            if not inside:
                others = f" ({unread.words()})" if unread.words() else ""
                raise DataError(f"the folder {name} holds no images{others}: give another one")
            found.extend(inside)
        elif os.path.exists(name):
            found.append(name)
        else:
            matches = sorted(match for match in glob.glob(name, recursive=True) if os.path.isfile(match))
            if not matches:
                kind = "pattern matches no file" if glob.has_magic(name) else "file does not exist"
                raise DataError(f"{name}: the {kind}; give image files, folders or patterns such as 'photos/*.jpg'")
            found.extend(matches)
    return found


def predictions(probabilities: np.ndarray, class_names: Sequence[str], top: int) -> list[dict[str, Any]]:
    """Returns the likeliest classes of one image, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [
        {"class": class_names[index], "index": int(index), "probability": round(float(probabilities[index]), 6)}
        for index in order
    ]


def _with_progress(batches: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
    """Shows a progress bar on a terminal where there is more than one batch."""
    if total <= BATCH_SIZE or not sys.stderr.isatty():
        yield from batches
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("classifying", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # On a terminal rich prints our lines above its bar; where stdout is a file or a pipe they must go there.
    console, above = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=above) as progress:
        task = progress.add_task("", total=total)
        for batch in batches:
            progress.advance(task, len(batch))
            yield batch


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m effnet_jax.predict", description=__doc__)
    parser.add_argument("weights", metavar="WEIGHTS", help="a weights dir, or the name of published weights")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, folders, or patterns in quotes")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to print for each image (5)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of text")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error("--top must be 1 or more")
    files = find_images(options.images)
    classify = load_classifier(options.weights)
    results = []
    rows = (row for batch in _with_progress(classify.batches(files), len(files)) for row in batch)
    for file, row in zip(files, rows, strict=True):
        likeliest = predictions(row, classify.class_names, options.top)
        results.append({"image": file, "predictions": likeliest})
        if not options.json:
            print(file)
            for line in likeliest:
                print(f"  {line['probability']:6.1%}  {line['class']}")
    if options.json:
        print(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    run_command(main)
