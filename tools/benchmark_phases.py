"""Measures what a training step costs for each unit that training may begin at, with and without the trunk cache.

    python tools/benchmark_phases.py --variant=b0 --resolution=224 --batch_size=16

One line for each X: the step of a phase with train=("X:",), batch norm frozen, SGD with momentum: FLOPs of the compiled
program (XLA's count) and milliseconds for an image, as a multiple of the forward pass too. The rounds go through all
programs in turn, and the least of them counts. Run it on an idle machine.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax.errors import run_command
from effnet_jax.model.efficientnet import EfficientNet, create_model
from effnet_jax.model.variants import get_variant
from effnet_jax.summary import summarise
from effnet_jax.train.cache.store import cached_inputs
from effnet_jax.train.config import phase
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.train.step.optimizers import make_optimizer, make_schedule
from effnet_jax.train.step.state import create_state
from effnet_jax.train.step.steps import Inputs, make_train_step

CLASSES = 100


class Program(NamedTuple):
    """A compiled program with its arguments."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    flops: float


def compile_step(model: EfficientNet, variables: Any, first: str, images: np.ndarray, *, cached: bool) -> Program:
    """Compiles the step of a phase that trains from a unit on."""
    count, side = images.shape[:2]
    plan = FreezePlan(model.variant.name, (f"{first}:",))
    keys = phase(train=plan.trained, steps=100, learning_rate=1e-3, weight_decay=1e-4)
    schedule = make_schedule(keys, steps=100, steps_per_epoch=1.0, batch_size=count)
    optimizer = make_optimizer(keys, plan, schedule)
    batch = {"image": images, "label": np.arange(count, dtype=np.int32), "index": np.arange(count, dtype=np.int32)}
    if cached:
        shape = {unit.name: unit.shape for unit in summarise(model.variant.name, side)}[plan.cut or ""]
        shape = shape[-1:] if plan.cut == "top" else shape  # pooled
        batch["image"] = np.random.default_rng(0).normal(0, 1, (count, *shape)).astype(np.float16)
    step = make_train_step(
        model, plan, optimizer, Inputs(cached_inputs(CLASSES, 0.1), first=plan.first_trained if cached else None)
    )
    arguments = (create_state(variables, optimizer, ema=False), batch)
    compiled = jax.jit(step).lower(*arguments).compile()
    return Program(compiled, arguments, _flops(compiled))


def _flops(compiled: Any) -> float:
    cost = compiled.cost_analysis()
    return float(cost["flops"]) if cost else float("nan")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="b0")
    parser.add_argument("--resolution", type=int, default=0, help="0: the variant's")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    side = arguments.resolution or get_variant(arguments.variant).resolution
    count = arguments.batch_size
    model = create_model(arguments.variant, num_classes=CLASSES)
    images = np.random.default_rng(0).uniform(0, 255, (count, side, side, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(images[:1, :64, :64]))
    forward = jax.jit(model.apply).lower(variables, images).compile()
    programs = {("forward", False): Program(forward, (variables, images), _flops(forward))}
    units = model.units
    names = [(unit, cached) for unit in reversed(units) for cached in (False, True) if not cached or unit != units[0]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # XLA compiles outside of Python's lock
        compiled = pool.map(lambda name: compile_step(model, variables, name[0], images, cached=name[1]), names)
        programs |= dict(zip(names, compiled, strict=True))
    print("compiled; measuring", file=sys.stderr, flush=True)
    seconds: dict[tuple[str, bool], float] = {}
    for _ in range(arguments.rounds + 1):  # the first warms up
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program.run(*program.arguments))
            taken = time.perf_counter() - begin
            seconds[name] = min(taken, seconds.get(name, float("inf")))

    def cells(name: tuple[str, bool]) -> str:
        if name not in programs:
            return " | | |"
        flops, milliseconds = programs[name].flops / count / 1e9, 1000 * seconds[name] / count
        return f" {flops:.3f} | {milliseconds:.2f} | {seconds[name] / seconds['forward', False]:.2f} |"

    device = jax.devices()[0].device_kind
    print(f"{arguments.variant} at {side}, batch {count}, {device}, jax {jax.__version__}\n")
    print("| trained from | GFLOP | ms | × forward | cached: GFLOP | ms | × forward |\n|---|---|---|---|---|---|---|")
    print(f"| (forward pass) |{cells(('forward', False))} | | |")
    for unit in reversed(units):
        print(f"| {unit} |{cells((unit, False))}{cells((unit, True))}")


if __name__ == "__main__":
    run_command(main)
