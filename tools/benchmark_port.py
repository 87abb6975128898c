"""Measures porting: time and peak memory against reading the checkpoint and computing its checksums.

    python tools/benchmark_port.py b7

Makes a checkpoint of random values under the variant's names, with moving averages, optimizer slots and a step counter,
in a temporary folder. Each figure is the best of `--repeats` runs, each in a process of its own, imports included: from
the disk, and once more with the files in memory (the page cache).
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from effnet_jax.errors import run_command
from effnet_jax.model.variants import get_variant
from effnet_jax.weights.bundle_writer import write_bundle
from effnet_jax.weights.layouts import LAYOUTS
from effnet_jax.weights.layouts.tf1 import EMA_ENDING
from effnet_jax.weights.readers import open_checkpoint


def random_tensors(variant: str, seed: int = 0, slots: int = 4) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a whole training checkpoint of a variant, one tensor at a time."""
    random = np.random.default_rng(seed)
    for number, row in enumerate(LAYOUTS["tf1"].table(get_variant(variant), 1000)):
        name = f"efficientnet-{variant}/{row.name}"
        endings = ["", EMA_ENDING] + (["/RMSProp", "/RMSProp_1"] if number < slots else [])
        for ending in endings:
            yield name + ending, random.random(row.shape, np.float32) + np.float32(0.5)
    yield "global_step", np.array(218949, np.int64)


def forget(prefix: str) -> None:
    """Drops the files from the page cache."""
    with open_checkpoint(prefix) as checkpoint:
        for path in checkpoint.files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_and_check(prefix: str) -> None:
    """The baseline: reads every file once, with the two checksums that porting needs."""
    with open_checkpoint(prefix) as checkpoint:
        for path in checkpoint.files:
            sha256 = hashlib.sha256()
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(1 << 24):
                    sha256.update(chunk)
                    google_crc32c.value(chunk)


def port(prefix: str) -> None:
    """What is measured: the whole of porting, imports included."""
    from effnet_jax.weights.port import port_checkpoint

    with tempfile.TemporaryDirectory(dir=Path(prefix).parent) as folder:
        port_checkpoint(prefix, Path(folder) / "out", family="imagenet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", nargs="?", default="b7")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=("read", "port"), help=argparse.SUPPRESS)
    parser.add_argument("--prefix", help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        if arguments.cold:
            forget(arguments.prefix)
        start = time.perf_counter()
        (read_and_check if arguments.run == "read" else port)(arguments.prefix)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "model.ckpt"
        write_bundle(prefix, random_tensors(arguments.variant))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{arguments.variant}: checkpoint of {size / 1e6:.0f} MB")
        for state, extra in (("from disk", ["--cold"]), ("from memory", [])):
            best = {}
            for run in ("read", "port"):
                command = [sys.executable, __file__, "--run", run, "--prefix", str(prefix), *extra]
                results = [
                    json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    for _ in range(arguments.repeats)
                ]
                best[run] = {key: min(result[key] for result in results) for key in ("seconds", "peak")}
            read, ported = best["read"], best["port"]
            print(f"{state}: read and checksums {read['seconds']:.2f} s")
            print(f"{state}: port {ported['seconds']:.2f} s = {ported['seconds'] / read['seconds']:.2f} x that")
            print(f"{state}: peak memory {ported['peak'] / 1e6:.0f} MB = {ported['peak'] / size:.2f} x the checkpoint")


if __name__ == "__main__":
    run_command(main)
