"""Measures a variant's forward pass and training steps, against XLA's own convolutions in the same run.

    python tools/benchmark.py --variant=b0 --resolution=224 --batch_size=16

Forms alternate (A B A B); the figure is the median of the rounds. Run it on an idle machine. On an accelerator both
forms are XLA's own, and the ratio is 1.
"""

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp

from effnet_jax.errors import run_command
from effnet_jax.model import layers
from effnet_jax.model.convolutions import native_conv
from effnet_jax.model.efficientnet import create_model
from effnet_jax.model.variants import get_variant
from effnet_jax.train.step.freeze import FreezePlan


@contextlib.contextmanager
def native_convolutions() -> Iterator[None]:
    """Replaces the CPU's forms of convolutions by XLA's own while a program is traced."""

    def depthwise(inputs: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
        return native_conv(inputs, kernel, stride, groups=inputs.shape[-1])

    with (
        mock.patch.object(layers, "depthwise_conv", depthwise),
        mock.patch.object(layers, "pointwise_conv", native_conv),
        mock.patch.object(layers, "full_conv", native_conv),
    ):
        yield


def make_programs(variant: str, dtype: str) -> dict[str, Callable]:
    """Makes what is measured: functions of (variables, images, labels)."""
    model = create_model(variant, dtype=dtype)

    def forward(variables, images, labels):
        del labels
        return model.apply(variables, images)

    def step(variables, images, labels, *, plan: FreezePlan):
        trained, frozen = plan.split(variables["params"])

        def loss_of(trained):
            logits, updated = model.apply(
                {"params": plan.merge(trained, frozen), "batch_stats": variables["batch_stats"]},
                images,
                train=plan.stochastic_units,
                update_batch_norm=plan.batch_norm_units,
                key=jax.random.key(0),
                mutable=["batch_stats"],
            )
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)), updated

        return jax.value_and_grad(loss_of, has_aux=True)(trained)

    plans = {
        "gradients, classifier only": FreezePlan(variant, ("classifier",)),
        "gradients, block6 to the output": FreezePlan(variant, ("block6:",)),
        "gradients, all units, batch norm frozen": FreezePlan(variant, ("all",)),
        "gradients, all units, batch norm trained": FreezePlan(variant, ("all",), batch_norm="train"),
    }
    return {"forward": forward} | {name: functools.partial(step, plan=plan) for name, plan in plans.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="b0")
    parser.add_argument("--resolution", type=int, default=0, help="0: the variant's")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--native", action="store_true", help="measure XLA's own convolutions too (slow on the CPU)")
    arguments = parser.parse_args()
    side = arguments.resolution or get_variant(arguments.variant).resolution
    images = jax.random.uniform(jax.random.key(1), (arguments.batch_size, side, side, 3)) * 255
    labels = jnp.arange(arguments.batch_size)
    init = jax.jit(create_model(arguments.variant, dtype=arguments.dtype).init)
    variables = init(jax.random.key(0), images[:1, :64, :64])
    device = jax.devices()[0].device_kind
    print(
        f"{arguments.variant} at {side}, batch {arguments.batch_size}, {arguments.dtype}, {device}, "
        f"jax {jax.__version__}"
    )
    for name, program in make_programs(arguments.variant, arguments.dtype).items():
        forms = {"": contextlib.nullcontext} | ({"native": native_convolutions} if arguments.native else {})
        compiled: dict[str, Callable] = {}
        seconds: dict[str, list[float]] = {form: [] for form in forms}
        for form, context in forms.items():
            begin = time.perf_counter()
            with context():
                # A new function each time: a cached trace would keep the other form's convolutions.
                compiled[form] = (
                    jax.jit(lambda *a, program=program: program(*a)).lower(variables, images, labels).compile()
                )
            built = time.perf_counter() - begin
            jax.block_until_ready(compiled[form](variables, images, labels))
            print(f"  {name}{', ' + form if form else ''}: compiled in {built:.1f} s", flush=True)
        for _ in range(arguments.rounds):
            for form in forms:
                begin = time.perf_counter()
                jax.block_until_ready(compiled[form](variables, images, labels))
                seconds[form].append(time.perf_counter() - begin)
        for form, times in seconds.items():
            middle = statistics.median(times)
            spread = f"{min(times):.3f}–{max(times):.3f} s"
            label = f"{name}, {form} convolutions" if form else name
            print(f"{label:60} {arguments.batch_size / middle:8.1f} images/s   {spread}", flush=True)


if __name__ == "__main__":
    run_command(main)
