"""Measures the input pipeline and prints a table: what the host does, per core, and what the device does.

    python tools/benchmark_input.py --data_dir=~/tensorflow_datasets --photographs=examples/clothing

Each part is left out where its data is not given. Run it on an idle machine.
"""

import argparse
import glob
import os
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from effnet_jax.data.loader import eval_batches, train_batches
from effnet_jax.data.preprocess import decode_image, evaluation_image, training_square
from effnet_jax.data.sources import open_source
from effnet_jax.errors import DataError, run_command


def row(what: str, figure: float, unit: str, note: str = "") -> None:
    print(f"{what:58} {figure:12,.2f} {unit:18} {note}", flush=True)


def per_item(function: Callable, items: list, repeats: int = 3) -> float:
    """Seconds of processor time that `function` takes for one item, the best of several rounds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for item in items:
            function(item)
        best = min(best, time.process_time() - start)
    return best / len(items)


def small_images(name: str, data_dir: str, batch_size: int = 128, steps: int = 2000) -> None:
    """A set of small images: opening it, then gathering batches on one core."""
    start = time.perf_counter()
    source = open_source({"name": name, "data_dir": data_dir}, "train")
    opened = time.perf_counter() - start
    row(f"{name}: opening and decoding {len(source):,} images", opened, "s")
    batches = train_batches(source, batch_size=batch_size, seed=0)
    start = time.perf_counter()
    epoch = -(-len(source) // batch_size)
    for _ in range(epoch):
        next(batches)
    first = time.perf_counter() - start
    row(f"{name}: first epoch from memory", epoch * batch_size / first, "images/s")
    start = time.process_time()
    for _ in range(steps):
        batch = next(batches)
    row(f"{name}: later epochs", steps * batch_size / (time.process_time() - start), "images/s/core", "goal: 50,000")
    row(f"{name}: host to device", batch["image"].nbytes / batch_size, "bytes/image", "uint8 as stored")
    start = time.perf_counter()
    for _ in eval_batches(source, batch_size=batch_size, resolution=224, crop="pad32"):
        pass
    row(f"{name}: evaluation batches", len(source) / (time.perf_counter() - start), "images/s")


def photographs(folder: str, size: int, resolution: int, count: int = 300) -> None:
    """An image folder: one core's work for one photograph, against a plain Pillow loop, then the loader."""
    paths = sorted(glob.glob(os.path.join(folder, "train", "*", "*.jpg")))[:count]
    if not paths:
        raise DataError(f"{folder} holds no train/*/*.jpg: give --photographs an image folder")

    def plain(path: str) -> np.ndarray:
        return np.asarray(Image.open(path).convert("RGB").resize((size, size)))

    ours, pillow = [], []
    for _ in range(3):  # in turns, so that a busy moment of the machine hits both
        ours.append(per_item(lambda path: training_square(path, size), paths, 1))
        pillow.append(per_item(plain, paths, 1))
    row(f"photographs: decode and square of {size}", 1 / min(ours), "images/s/core")
    row("photographs: the same in a plain Pillow loop", 1 / min(pillow), "images/s/core")
    row("photographs: ours / Pillow", min(pillow) / min(ours), "x", "goal: 0.9")
    row("photographs: decode alone", 1e3 * per_item(decode_image, paths), "ms/image")
    decoded = [decode_image(path) for path in paths[:50]]
    crop = per_item(lambda image: evaluation_image(image, resolution, "pad32"), decoded)
    row(f"photographs: crop and TF1 bicubic to {resolution}", 1e3 * crop, "ms/image")

    source = open_source({"name": folder}, "train")
    steps = max(1, len(source) // 32)
    for label, options in (
        ("threads, no cache", {"cache_gib": 0}),
        ("threads, kept in memory", {"cache_gib": 8}),
        ("2 worker processes", {"cache_gib": 0, "workers": 2}),
    ):
        batches = train_batches(source, batch_size=32, seed=0, size=size, **options)
        speeds = []
        for _ in range(2):
            start = time.perf_counter()
            for _ in range(steps):
                next(batches)
            speeds.append(steps * 32 / (time.perf_counter() - start))
        batches.close()
        row(f"photographs: loader, {label}", speeds[1], "images/s", f"first epoch {speeds[0]:,.0f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="cifar100", help="a set of small images")
    parser.add_argument("--data_dir", default="", help="where tensorflow-datasets keeps it; left out without")
    parser.add_argument("--photographs", default="", help="an image folder; left out without")
    parser.add_argument("--resolution", type=int, default=224)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    if args.data_dir:
        small_images(args.name, args.data_dir)
    if args.photographs:
        photographs(args.photographs, round(args.resolution * 8 / 7), args.resolution)
    return 0


if __name__ == "__main__":
    run_command(main)
