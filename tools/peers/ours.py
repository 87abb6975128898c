"""This package's programs: forward passes and gradients, as its training steps have them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from effnet_jax import create_model
from effnet_jax.train.step.freeze import FreezePlan

TRAINED = {"classifier": ("classifier",), "block6": ("block6:",), "frozen": ("all",), "trained": ("all",)}


def versions() -> str:
    """What runs."""
    return f"jax {jax.__version__}, {jax.devices()[0].device_kind}"


def program_of(case: dict[str, Any], lowering: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a function and what it takes."""
    variant, batch, side = case["variant"], case["batch"], case["resolution"]
    model = create_model(variant, dtype=case["dtype"], lowering=lowering)
    images = jax.random.uniform(jax.random.key(1), (batch, side, side, 3)) * 255
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    if case["workload"] == "forward":
        return model.apply, (variables, images)
    workload = case["workload"]
    plan = FreezePlan(variant, TRAINED[workload], batch_norm="train" if workload == "trained" else "frozen")
    labels = jnp.arange(batch) % 1000

    def step(variables: Any, images: jax.Array) -> Any:
        trained, frozen = plan.split(variables["params"])

        def loss_of(trained: Any) -> Any:
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

    return step, (variables, images)


def make(case: dict[str, Any], lowering: str) -> Callable[[], Any]:
    """Compiles a case."""
    function, operands = program_of(case, lowering)
    compiled = jax.jit(function).lower(*operands).compile()
    return lambda: jax.block_until_ready(compiled(*operands))
