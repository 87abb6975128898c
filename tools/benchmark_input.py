"""Measures the input pipeline and prints a table: what the host does, per core, and what the device does.

    python tools/benchmark_input.py --data_dir=~/tensorflow_datasets --photographs=examples/clothing

Each part is left out where its data is not given; --device adds augmentation, and a training step to compare it with
(a minute or two of compilation on CPU). Run it on an idle machine.
"""

import argparse
import contextlib
import functools
import glob
import os
import shutil
import statistics
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from effnet_jax.data.augment import make_augment
from effnet_jax.data.decode import decode_image
from effnet_jax.data.decoders import Decoders, cores, payload
from effnet_jax.data.examples import TrainingExamples
from effnet_jax.data.loader import eval_batches, train_batches
from effnet_jax.data.prepare import prepare_files
from effnet_jax.data.preprocess import evaluation_image, training_square
from effnet_jax.data.sources import open_dataset, open_source
from effnet_jax.data.sources.base import Source
from effnet_jax.data.squares import SquareCache
from effnet_jax.errors import DataError, run_command
from effnet_jax.model.efficientnet import create_model
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.train.step.state import create_state
from effnet_jax.train.step.steps import make_train_step


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
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("threads, no cache", {}),
        ("threads, kept in memory", {"squares": SquareCache(8)}),
        ("2 worker processes", {"workers": 2}),
    )
    for label, options in kinds:
        batches = train_batches(source, batch_size=32, seed=0, size=size, **options)
        speeds = []
        for _ in range(2):
            start = time.perf_counter()
            for _ in range(steps):
                next(batches)
            speeds.append(steps * 32 / (time.perf_counter() - start))
        batches.close()
        row(f"photographs: loader, {label}", speeds[1], "images/s", f"first epoch {speeds[0]:,.0f}")


def large_folders(folder: str, size: int, entries: list[int], batch_sizes: list[int], rounds: int = 3) -> None:
    """Folders of many links to a few photographs: opening them, and the loader beside a plain loop of the decoding.

    Ratios are medians over rounds in which all forms take turns.
    """
    photographs = sorted(glob.glob(os.path.join(folder, "train", "*", "*.jpg")))
    if not photographs:
        raise DataError(f"{folder} holds no train/*/*.jpg: give --photographs an image folder")
    with tempfile.TemporaryDirectory(prefix="effnet_jax") as place:
        os.environ["XDG_CACHE_HOME"] = os.path.join(place, "cache")
        sources = {}
        for count in entries:
            root = os.path.join(place, str(count))
            make_links(root, photographs, count)
            time.sleep(2.5)  # a listing is kept for folders that rest
            for state in ("disk cold", "warm"):
                for what in ("listed", "opened again"):
                    if what == "listed":
                        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
                    if state == "disk cold" and not forget_disk():
                        continue
                    start = time.perf_counter()
                    sources[count] = open_dataset({"name": root}, ["train"]).split("train")
                    row(f"{count:,} files, {what}, {state}", time.perf_counter() - start, "s")
            overhead(f"{count:,} files", sources[count], size)
            worker_costs(f"{count:,} files", sources[count], size)
        sample = photographs[:200]

        def plain() -> float:
            start = time.perf_counter()
            for path in sample:
                with open(path, "rb") as file:
                    training_square(file.read(), size)
            return len(sample) / (time.perf_counter() - start)

        def loaded(count: int, batch_size: int, workers: int) -> float:
            options: dict[str, Any] = {"seed": 0, "workers": workers, "size": size, "batch_size": batch_size}
            with contextlib.closing(train_batches(sources[count], **options)) as batches:
                for _ in range(max(3, 5000 // batch_size)):  # until memory is not taken anew any more
                    next(batches)
                begin, steps = time.perf_counter(), max(2, 4000 // batch_size)
                for _ in range(steps):
                    next(batches)
                return steps * batch_size / (time.perf_counter() - begin)

        forms = [(count, batch_sizes[0], workers) for count in entries for workers in (0, 2)]
        forms += [(entries[-1], batch_size, workers) for batch_size in batch_sizes[1:] for workers in (0, 2)]
        speeds: dict[Any, list[float]] = {form: [] for form in ("plain", *forms)}
        for _ in range(rounds):
            for form in forms:
                speeds["plain"].append(plain())
                speeds[form].append(loaded(*form))
        one = statistics.median(speeds["plain"])
        row("a plain loop of the same decoding, one thread", one, "images/s")
        for count, batch_size, workers in forms:
            speed = statistics.median(speeds[count, batch_size, workers])
            who = f"{workers} workers" if workers else f"{cores()} threads"
            note = f"{speed / one / (workers or cores()):.2f} of a loop on each; goal: 0.9"
            row(f"{count:,} files, batches of {batch_size}, {who}", speed, "images/s", note)


def overhead(what: str, source: Source, size: int, count: int = 256) -> None:
    """What an example takes beside its decoding: Python, reading the file, and writing the row."""
    examples = TrainingExamples(source, size)
    random, square = np.random.default_rng(0), np.zeros((size, size, 3), np.uint8)
    positions = random.integers(0, len(source), count)
    out = {name: np.empty((count, *shape), dtype) for name, (shape, dtype) in examples.fields.items()}
    paths = [source.example_id(position) for position in positions.tolist()]

    def read(_: int) -> None:
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                file.readall()

    def write(_: int) -> None:
        for line in range(count):
            out["image"][line] = square

    def fill(_: int) -> None:
        with unittest.mock.patch("effnet_jax.data.examples.training_square", lambda *_, **__: (square, 1.0)):
            examples.fill(positions, out)

    parts = [per_item(part, [0], repeats=50) / count * 1e6 for part in (fill, read, write)]
    row(f"{what}, beside decoding: all", parts[0], "us/example")
    row(f"{what}, of which opening and reading, writing the row", parts[1] + parts[2], "us/example")
    row(f"{what}, of which Python", parts[0] - parts[1] - parts[2], "us/example", "goal: 5")


def worker_costs(what: str, source: Source, size: int) -> None:
    """What worker processes cost: bytes sent, time to the first rows, memory that only they have."""
    examples = TrainingExamples(source, size)
    row(f"{what}, what a worker is sent", len(payload(examples)) / 1e3, "kB")
    start = time.perf_counter()
    with contextlib.closing(Decoders(examples, workers=1)) as decoders:
        decoders.fill(np.arange(1)).wait()
        row(f"{what}, a worker's start to its first image", 1e3 * (time.perf_counter() - start), "ms")
        for first in range(0, 2560, 256):
            decoders.fill(np.arange(first, first + 256) % len(source)).wait()
        (worker,) = children()
        row(f"{what}, memory that is a worker's alone", private_memory(worker) / 1e6, "MB", "goal: 50")


def forget_disk() -> bool:
    """Has the system forget what it has read of disks; False where this process may not."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3")
        return True
    except OSError:
        return False


def private_memory(process: int) -> int:
    """Bytes of memory that one process alone has, without the batches that it shares."""
    total, shared = 0, False
    with open(f"/proc/{process}/smaps") as file:
        for line in file:
            if not line.split()[0].endswith(":"):  # the head of a mapping
                shared = "memfd:effnet_jax" in line
            elif line.startswith("Private_") and not shared:
                total += 1024 * int(line.split()[1])
    return total


def children() -> list[int]:
    """The processes that this one has started."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        found = file.read().split()
    for task in os.listdir("/proc/self/task"):  # a child belongs to the thread that started it
        with open(f"/proc/self/task/{task}/children") as file:
            found += file.read().split()
    return sorted({int(number) for number in found})


def array_records(folder: str) -> None:
    """A prepared set of photographs: reading records in bulk and one by one."""
    with tempfile.TemporaryDirectory(prefix="effnet_jax") as place:
        out, _ = prepare_files(folder, os.path.join(place, "set"))
        source = open_source({"name": out}, "train")
        positions = np.random.default_rng(0).permutation(len(source))
        for count in (1, 64, len(source)):
            chunks = [positions[start : start + count] for start in range(0, len(source), count)]
            source.read_many(chunks[0])
            seconds = sum(per_item(source.read_many, [chunk]) for chunk in chunks) / len(source)
            row(f"ArrayRecord, {count} at a time", 1e6 * seconds, "us/record", "goal: 15")


def make_links(root: str, photographs: list[str], count: int, classes: int = 1000) -> None:
    """A folder `train/<class>/<n>.jpg` of hard links to copies of some photographs."""
    os.makedirs(f"{root}.copies")
    copies = [shutil.copy(path, os.path.join(f"{root}.copies", f"{i}.jpg")) for i, path in enumerate(photographs)]
    classes = min(classes, max(2, count // 20))
    for label in range(classes):
        folder = os.path.join(root, "train", f"n{label:08d}")
        os.makedirs(folder)
        for number in range(label, count, classes):
            os.link(copies[number % len(copies)], os.path.join(folder, f"n{label:08d}_{number}.jpg"))


RECIPES: dict[str, dict[str, Any]] = {
    "resize alone": {},
    "flip, shift, zoom (two matrix products)": {"flip": True, "shift": 0.1, "zoom": 0.1},
    "flip, random resized crop": {"flip": True, "crop": (0.3, 1.0)},
    "flip, shift, zoom, rotation (16-tap gather)": {"flip": True, "shift": 0.1, "zoom": 0.1, "rotate": 15.0},
    "the same, bilinear (4 taps)": {
        "flip": True,
        "shift": 0.1,
        "zoom": 0.1,
        "rotate": 15.0,
        "interpolation": "bilinear",
    },
    "flip, RandAugment (2, 10)": {"flip": True, "randaugment": (2, 10)},
    "flip, AutoAugment v0": {"flip": True, "policy": "v0"},
    "flip, colour jitter": {"flip": True, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    "flip, mixup, cutmix, erasing": {"flip": True, "mixup": 0.2, "cutmix": 1.0, "erase": 0.25},
}


def device(resolution: int, batch_size: int = 16) -> None:
    """Augmentation on the device, from squares of photographs and from small images, beside a training step of B0."""
    kind = jax.devices()[0].device_kind
    random = np.random.default_rng(0)
    step = training_step_seconds(resolution, batch_size) / batch_size
    row(f"training step of B0 at {resolution}, batch {batch_size}, on {kind}", 1e3 * step, "ms/image")
    keys = jax.random.split(jax.random.key(0), batch_size)
    for side in (round(resolution * 8 / 7), 32):
        aspects = random.uniform(0.7, 1.5, batch_size) if side > 96 else np.ones(batch_size)
        batch = {
            "image": jnp.asarray(random.integers(0, 256, (batch_size, side, side, 3)).astype(np.uint8)),
            "aspect": jnp.asarray(aspects, jnp.float32),
            "label": jnp.zeros(batch_size, jnp.int32),
        }
        row(f"host to device for {side}x{side}", batch["image"].nbytes / batch_size, "bytes/image", "uint8 as it comes")
        for name, settings in RECIPES.items():
            augment = jax.jit(make_augment(settings, resolution=resolution, num_classes=100))
            seconds = best_seconds(functools.partial(augment, batch, keys)) / batch_size
            note = f"{seconds / step:.1%} of a step; goal: {'20 %' if 'Augment' in name else '10 %'}"
            row(f"{side} -> {resolution}: {name}", 1e3 * seconds, "ms/image", note)


def training_step_seconds(resolution: int, batch_size: int) -> float:
    """Seconds of a step that trains all of B0 from images that are ready."""
    model = create_model("b0", num_classes=100)
    plan = FreezePlan("b0", trained=("all",), batch_norm="train")
    images = jnp.full((batch_size, resolution, resolution, 3), 100.0)
    targets = jnp.full((batch_size, 100), 0.01)
    optimizer = optax.sgd(0.01, momentum=0.9)
    step = jax.jit(make_train_step(model, plan, optimizer, lambda batch, keys: (images, targets)))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    state = create_state(variables, optimizer, ema=False)
    return best_seconds(lambda: step(state, {"index": jnp.arange(batch_size)}), rounds=3)


def best_seconds(function: Callable[[], Any], rounds: int = 7) -> float:
    """Seconds of the fastest of several calls, after one that compiles."""
    jax.block_until_ready(function())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="cifar100", help="a set of small images")
    parser.add_argument("--data_dir", default="", help="where tensorflow-datasets keeps it; left out without")
    parser.add_argument("--photographs", default="", help="an image folder; left out without")
    parser.add_argument(
        "--entries", default="", help="numbers of files, such as 400,75750,1281167: links to the photographs"
    )
    parser.add_argument("--batch_sizes", default="256,64,1024,4096", help="with --entries")
    parser.add_argument("--device", action="store_true", help="augmentation beside a training step")
    parser.add_argument("--resolution", type=int, default=224)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    if args.data_dir:
        small_images(args.name, args.data_dir)
    if args.photographs and not args.entries:
        photographs(args.photographs, round(args.resolution * 8 / 7), args.resolution)
        array_records(args.photographs)
    if args.entries:
        sizes, batches = ([int(number) for number in text.split(",")] for text in (args.entries, args.batch_sizes))
        large_folders(args.photographs, round(args.resolution * 8 / 7), sizes, batches)
    if args.device:
        device(args.resolution)
    return 0


if __name__ == "__main__":
    run_command(main)
