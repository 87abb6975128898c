"""Runs one peer's programs in a process of its own, as the benchmark tells it to over its input and output.

    python tools/peers/worker.py KIND

Lines of JSON come in: {"prepare": case} makes a program and runs it once, {"run": seconds} runs it again and again for
about so long. One line goes out for each. What a library prints goes to the other output.
"""

import importlib
import json
import os
import resource
import sys
import time
from typing import Any

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "effnet_jax": ("ours", {"lowering": "auto"}),
    "effnet_jax-xla": ("ours", {"lowering": "platform"}),
    "flax": ("plain", {"form": "linen"}),
    "nnx": ("plain", {"form": "nnx"}),
    "timm": ("torch_timm", {"compiled": False}),
    "timm-compiled": ("torch_timm", {"compiled": True}),
    "keras-tf": ("keras_applications", {"backend": "tensorflow"}),
    "keras-jax": ("keras_applications", {"backend": "jax"}),
}
WORKLOADS = ("forward", "classifier", "block6", "frozen", "trained")


def peak_bytes() -> int:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """The command."""
    module, settings = KINDS[sys.argv[1]]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    peer: Any = importlib.import_module(module)
    program: Any = None

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    answer(versions=peer.versions())
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "prepare" in asked:
                program = None  # its memory goes first
                begin = time.perf_counter()
                program = peer.make(asked["prepare"], **settings)
                program()
                answer(first=time.perf_counter() - begin)
                program()
            else:
                times: list[float] = []
                while sum(times) < asked["run"] or not times:
                    begin = time.perf_counter()
                    program()
                    times.append(time.perf_counter() - begin)
                answer(times=times, peak=peak_bytes())
        except Exception as error:  # whatever a peer cannot do is a line of the table
            answer(error=f"{type(error).__name__}: {error}"[:300])


if __name__ == "__main__":
    main()
