r"""Measures forward passes and training steps, this package's and its peers', in one run: A B A B.

    python tools/benchmark.py --variant=b0 --batch_size=16,64 --workload=forward,frozen,trained \
        --peer flax --peer timm=/path/to/python --peer timm-compiled=/path/to/python --peer keras-tf=/path/to/python

Each peer is a process of its own, in its own Python where one is given. In each round every one of them runs for some
seconds, one after the other; a figure is the median of all its runs, a ratio the median of the rounds' ratios. What is
called clean was measured while nothing else used the machine: on a busy one the command stops, or says so (`--busy`).

Workloads: forward; the gradients of the classifier alone, of block6 to the output, of all with batch norm frozen, and
of all with batch norm trained.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peers.worker import KINDS, WORKLOADS

from effnet_jax.errors import ConfigError, run_command
from effnet_jax.model.variants import get_variant

_WORKER = Path(__file__).with_name("peers") / "worker.py"
_OURS = "effnet_jax"
_QUIET = 0.05  # share of the machine that others may use in a clean run


class Peer:
    """A process that runs one peer's programs."""

    def __init__(self, kind: str, python: str) -> None:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        self.kind = kind
        self._process = subprocess.Popen(
            [python, os.fspath(_WORKER), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.versions = self._answer().get("versions", "")

    def ask(self, **asked: Any) -> dict[str, Any]:
        """Has it do something, and returns what it says."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": "its process has ended"}
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"its process ended with {self._process.wait()}"}

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


@dataclasses.dataclass
class Row:
    """One peer in one case."""

    kind: str
    first: float = 0.0  # seconds from nothing to the end of the first run
    times: list[float] = dataclasses.field(default_factory=list)
    rounds: list[float] = dataclasses.field(default_factory=list)  # medians
    peak: int = 0
    error: str = ""


def others_share(seconds: float = 2.0) -> float:
    """The share of the machine that something uses while this process waits."""

    def counts() -> list[int]:
        return [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]

    if not Path("/proc/stat").exists():
        return 0.0
    before = counts()
    time.sleep(seconds)
    spent = [after - then for after, then in zip(counts(), before, strict=True)]
    return 1.0 - (spent[3] + spent[4]) / max(1, sum(spent))  # idle, and waiting for a disk


def measure(case: dict[str, Any], peers: list[Peer], rounds: int, seconds: float) -> list[Row]:
    """Runs one case in turns."""
    rows = [Row(peer.kind) for peer in peers]
    for row, peer in zip(rows, peers, strict=True):
        made = peer.ask(prepare=case)
        row.first, row.error = made.get("first", 0.0), made.get("error", "")
    for _, (row, peer) in itertools.product(range(rounds), zip(rows, peers, strict=True)):
        if row.error:
            continue
        ran = peer.ask(run=seconds)
        if "error" in ran:
            row.error = ran["error"]
            continue
        row.times += ran["times"]
        row.rounds.append(statistics.median(ran["times"]))
        row.peak = ran["peak"]
    return rows


def machine_peaks() -> dict[str, float]:
    """Matrix products in GFLOP/s and copies in GB/s of this machine, as XLA reaches them in float32."""
    code = (
        "import time, jax, jax.numpy as jnp\n"
        "def rate(f, x, work):\n"
        "    f = jax.jit(f).lower(x).compile(); jax.block_until_ready(f(x)); best = 9e9\n"
        "    for _ in range(10):\n"
        "        t = time.perf_counter(); jax.block_until_ready(f(x)); best = min(best, time.perf_counter() - t)\n"
        "    return work / best / 1e9\n"
        "print(rate(lambda x: x @ x, jnp.ones((2048, 2048)), 2 * 2048**3))\n"
        "print(rate(lambda x: x + 1, jnp.ones(2**26), 8 * 2**26))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return {"products_gflops": float(told[0]), "copies_gbytes": float(told[1])}


@functools.cache
def flops_of(variant: str, resolution: int) -> float:
    """Floating-point operations of one image's forward pass, as XLA counts them."""
    code = (
        "import jax, sys; from effnet_jax import create_model; m = create_model(sys.argv[1], lowering='native')\n"
        "x = jax.ShapeDtypeStruct((1, int(sys.argv[2]), int(sys.argv[2]), 3), 'float32')\n"
        "v = jax.eval_shape(m.init, jax.random.key(0), x)\n"
        "print(jax.jit(m.apply).lower(v, x).cost_analysis()['flops'])\n"
    )
    command = [sys.executable, "-c", code, variant, str(resolution)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def table(case: dict[str, Any], rows: list[Row], flops: float, peaks: dict[str, float]) -> str:
    """The lines of one case."""
    work = {"forward": 1.0, "classifier": 1.0, "frozen": 3.0, "trained": 3.0}.get(case["workload"])
    lines = [f"{case['workload']}, {case['variant']} at {case['resolution']}, batch {case['batch']}, {case['dtype']}"]
    ours = next((row for row in rows if row.kind == _OURS and row.rounds), None)
    for row in rows:
        if row.error:
            lines.append(f"  {row.kind:15} {row.error}")
            continue
        rate = case["batch"] / statistics.median(row.times)
        ratio = ""
        if ours and row is not ours:
            ratio = f"ours {statistics.median(b / a for a, b in zip(ours.rounds, row.rounds, strict=True)):6.2f} x"
        share = f"{rate * flops * work / 1e9 / peaks['products_gflops']:6.1%}" if work else ""
        lines.append(
            f"  {row.kind:15} {rate:8.1f} images/s  {ratio:13} {share:>6} of products, first run after "
            f"{row.first:6.1f} s, process at most {row.peak / 2**20:6.0f} MiB"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="b0", help="several with commas between them, as for what follows")
    parser.add_argument("--resolution", type=int, default=0, help="0: the variant's")
    parser.add_argument("--batch_size", default="16")
    parser.add_argument("--workload", default=",".join(WORKLOADS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--peer", action="append", default=[], help=f"KIND or KIND=PYTHON, of {', '.join(KINDS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each peer in each round")
    parser.add_argument("--json", default="", help="where to write all times")
    parser.add_argument("--busy", action="store_true", help="measure although something else uses the machine")
    arguments = parser.parse_args()
    given = [_OURS, *(peer for peer in arguments.peer if peer != _OURS)]
    for kind, _, python in (peer.partition("=") for peer in given):
        if kind not in KINDS:
            raise ConfigError(f"there is no peer {kind!r}: one of {', '.join(KINDS)}")
        if python and not Path(python).exists():
            raise ConfigError(f"--peer {kind}={python}: there is no such Python")
    share = others_share()
    if share > _QUIET and not arguments.busy:
        raise ConfigError(f"something uses {share:.0%} of this machine: wait for it to end, or measure with --busy")
    state = "clean" if share <= _QUIET else f"NOT CLEAN, others use {share:.0%}"
    peaks = machine_peaks()
    print(f"{state}; {peaks['products_gflops']:.0f} GFLOP/s, {peaks['copies_gbytes']:.1f} GB/s", flush=True)
    peers = [Peer(kind, python or sys.executable) for kind, _, python in (peer.partition("=") for peer in given)]
    results = []
    try:
        for peer in peers:
            print(f"  {peer.kind:15} {peer.versions}", flush=True)
        for variant, batch, workload in itertools.product(
            arguments.variant.split(","), map(int, arguments.batch_size.split(",")), arguments.workload.split(",")
        ):
            side = arguments.resolution or get_variant(variant).resolution
            case = {"workload": workload, "variant": variant, "batch": batch, "resolution": side}
            case |= {"dtype": arguments.dtype}
            rows = measure(case, peers, arguments.rounds, arguments.seconds)
            print(table(case, rows, flops_of(variant, side), peaks), flush=True)
            results.append(case | {"rows": [dataclasses.asdict(row) for row in rows]})
    finally:
        for peer in peers:
            peer.end()
    if arguments.json:
        told = {"state": state, "peaks": peaks, "versions": {p.kind: p.versions for p in peers}, "cases": results}
        Path(arguments.json).write_text(json.dumps(told))


if __name__ == "__main__":
    run_command(main)
