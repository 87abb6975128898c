"""Measures `predict`: images a second against decoding and the model alone, memory, and a resume after a kill.

    python tools/benchmark_predict.py --weights=lite0 --photographs=examples/clothing --count=100000

Rounds of four, one after the other: decoding alone, the model alone, a loop that does first the one and then the other
with the same batches, and `Classifier.stream`. Where the model has a device of its own, streaming can be as fast as the
slower of the two; on a CPU both share its cores, and then no overlap gives more than the loop does but for what waits.
Then the command classifies `count` links to the photographs, once to the end and once killed in the middle and gone on
with. Run it on an idle machine.

    python tools/benchmark_predict.py --weights=lite0 --photographs=examples/clothing --folding

times the network alone, batch norm folded and not, by XLA on one device, and by the CPU's kernels where there are some.
"""

import argparse
import filecmp
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from effnet_jax.data.decoders import Decoders
from effnet_jax.data.view import EvaluationView
from effnet_jax.errors import run_command
from effnet_jax.model import by_kernels
from effnet_jax.model.efficientnet import EfficientNet
from effnet_jax.model.folding import fold_batch_norm
from effnet_jax.predict import find_images, load_classifier
from effnet_jax.predict.inputs import ViewedImages
from effnet_jax.weights.store import load_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a weights dir, or the name of published weights")
    parser.add_argument("--photographs", required=True, help="a folder")
    parser.add_argument("--resolution", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode (0: threads)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=640, help="of each part of a round")
    parser.add_argument("--count", type=int, default=0, help="links that the command classifies (0: none)")
    parser.add_argument("--folding", action="store_true", help="time batch norm folded and not instead")
    options = parser.parse_args()
    print(
        f"{jax.device_count()} × {jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    if options.folding:
        compare_folding(options)
        return
    photographs = find_images([options.photographs])
    compare_streaming(options, photographs)
    if options.count:
        with tempfile.TemporaryDirectory() as folder:
            run_the_command(options, photographs, Path(folder))


def compare_streaming(options: argparse.Namespace, photographs: Sequence[str]) -> None:
    """Rounds of decoding, model, loop and stream."""
    classify = load_classifier(
        options.weights, resolution=options.resolution, batch_size=options.batch_size, workers=options.workers
    )
    size, seen = classify.batch_size, classify.metadata
    viewed = ViewedImages(EvaluationView(seen.resolution, seen.evaluation, seen.crop, seen.resize))
    images = list(itertools.islice(itertools.cycle(photographs), options.images // size * size))
    starts = range(0, len(images), size)
    batch = np.random.default_rng(0).uniform(0, 255, (size, seen.resolution, seen.resolution, 3)).astype(np.float32)
    decoders = Decoders(viewed, workers=options.workers)

    def rows(start: int) -> Any:
        return decoders.fill([(row, (path, path)) for row, path in enumerate(images[start : start + size])])

    def decoding() -> None:
        ahead = [rows(start) for start in starts[:3]]
        for start in starts[3:]:
            ahead.pop(0).wait()
            ahead.append(rows(start))
        for one in ahead:
            one.wait()

    def model() -> None:
        waiting: list[jax.Array] = []
        for _ in starts:
            waiting.append(classify._compute(batch))
            if len(waiting) > 2:
                np.asarray(waiting.pop(0))
        for one in waiting:
            np.asarray(one)

    def loop() -> None:
        for start in starts:
            one = rows(start)
            one.wait()
            np.asarray(classify._compute(one.arrays["image"]))

    def stream() -> None:
        for _ in classify.stream(images):
            pass

    parts: dict[str, Callable[[], None]] = {"decoding": decoding, "model": model, "loop": loop, "stream": stream}
    for part in parts.values():
        part()
    rates: dict[str, list[float]] = {name: [] for name in parts}
    costs: dict[str, list[float]] = {name: [] for name in parts}  # seconds of processors, of this process alone
    for _ in range(options.rounds):
        for name, part in parts.items():
            began, worked = time.perf_counter(), time.process_time()
            part()
            rates[name].append(len(images) / (time.perf_counter() - began))
            costs[name].append((time.process_time() - worked) / len(images))
    decoders.close()
    print(f"batches of {size}, {seen.variant} at {seen.resolution}, {len(images)} images a part:")
    for name in parts:
        rate, cost = statistics.median(rates[name]), statistics.median(costs[name])
        print(f"  {name:9} {rate:9,.1f} images/s {1e3 * cost:9,.2f} ms of one core an image")
    both = [1 / (1 / d + 1 / m) for d, m in zip(rates["decoding"], rates["model"], strict=True)]
    slower = [min(pair) for pair in zip(rates["decoding"], rates["model"], strict=True)]
    for name, against in (
        ("the slower of decoding and model", slower),
        ("both on the same cores, 1 / (1 / decoding + 1 / model)", both),
        ("the loop", rates["loop"]),
    ):
        ratios = [one / other for one, other in zip(rates["stream"], against, strict=True)]
        print(f"  stream / {name}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def run_the_command(options: argparse.Namespace, photographs: Sequence[str], folder: Path) -> None:
    """The command on links, with its memory, to the end; and again with a kill in the middle."""
    links = folder / "links"
    links.mkdir()
    for number, path in zip(range(options.count), itertools.cycle(photographs)):  # noqa: B905
        (links / f"{number:07}{Path(path).suffix}").symlink_to(os.path.abspath(path))
    flags = [f"--{key}={getattr(options, key)}" for key in ("resolution", "batch_size", "workers")]

    def start(out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "effnet_jax.predict", options.weights, str(links), f"--out={out}", *flags]
        return subprocess.Popen(command)

    whole, killed = folder / "whole.jsonl", folder / "killed.jsonl"
    began, memory = time.monotonic(), []
    with start(whole) as process:
        while process.poll() is None:
            time.sleep(0.5)
            memory.append((lines(whole), resident(process.pid)))
    seconds = time.monotonic() - began
    speed = options.count / seconds
    print(f"the command: {options.count:,} images in {seconds:,.0f} s, {speed:,.1f} images/s with its start")
    for share in (0.1, 0.25, 0.5, 0.75, 0.95):
        number, taken = next((entry for entry in memory if entry[0] >= share * options.count), memory[-1])
        print(f"  memory after {number:9,} images: {taken / 2**20:7,.0f} MiB")
    with start(killed) as process:
        while process.poll() is None and lines(killed) < options.count // 2:
            time.sleep(0.1)
        process.kill()
    at = lines(killed)
    with start(killed) as process:
        process.wait()
    same = filecmp.cmp(whole, killed, shallow=False)
    print(f"killed after {at:,} images and gone on with: {'the same bytes' if same else 'ANOTHER FILE'}")


def resident(process: int) -> int:
    """Bytes of memory of a process; 0 where it is gone."""
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


_counted: dict[Path, tuple[int, int]] = {}


def lines(path: Path) -> int:
    """Lines of a file that grows; only what is new is read."""
    offset, count = _counted.get(path, (0, 0))
    if path.exists():
        with open(path, "rb") as file:
            file.seek(offset)
            new = file.read()
        _counted[path] = offset, count = offset + len(new), count + new.count(b"\n")
    return count


def compare_folding(options: argparse.Namespace) -> None:
    """Times the network, in turns: XLA with batch norm apart, folded, and the kernels."""
    model, variables, metadata = load_weights(options.weights)
    assert isinstance(model, EfficientNet)
    side = options.resolution or metadata.resolution
    forms: dict[str, tuple[Any, Any]] = {
        "apart": (model.clone(lowering="platform"), variables),
        "folded": (model.clone(lowering="platform", folded=True), fold_batch_norm(variables)),
    }
    if by_kernels.chosen(model.lowering, model.dtype):
        forms["kernels"] = (model, variables)
    figures = {}
    for size in (1, 16):
        images = jax.device_put(np.random.default_rng(0).uniform(0, 255, (size, side, side, 3)).astype(np.float32))
        calls = {}
        for name, (form, values) in forms.items():
            placed = jax.device_put(values)
            calls[name] = (jax.jit(lambda v, x, form=form: jax.nn.softmax(form.apply(v, x))), placed)
        outputs = {name: np.asarray(call(values, images)) for name, (call, values) in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.rounds):
            for name, (call, values) in calls.items():
                began, count = time.perf_counter(), 0
                while time.perf_counter() - began < 1.0:
                    call(values, images).block_until_ready()
                    count += 1
                times[name].append((time.perf_counter() - began) / count / size)
        figures[size] = {
            name: {
                "ms": round(1e3 * statistics.median(times[name]), 3),
                "times_faster": round(
                    statistics.median(a / b for a, b in zip(times["apart"], times[name], strict=True)), 3
                ),
                "largest_difference": float(np.abs(outputs[name] - outputs["apart"]).max()),
            }
            for name in calls
        }
    print(json.dumps({"variant": metadata.variant, "resolution": side, "an image by batch size": figures}, indent=1))


if __name__ == "__main__":
    run_command(main)
