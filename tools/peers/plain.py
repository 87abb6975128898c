"""The network as guides write it: Flax Linen's layers (`plain_flax.py`), or Flax NNX's as jax-ml/bonsai uses them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from effnet_jax.model.variants import get_variant


def versions() -> str:
    """What runs."""
    import flax

    return f"flax {flax.__version__}, jax {jax.__version__}, {jax.devices()[0].device_kind}"


def make(case: dict[str, Any], form: str) -> Callable[[], Any]:
    """Compiles a case; what is frozen gets no gradient."""
    variant, batch, side = get_variant(case["variant"]), case["batch"], case["resolution"]
    images = jax.random.uniform(jax.random.key(1), (batch, side, side, 3)) * 255
    labels, workload, dtype = jnp.arange(batch) % 1000, case["workload"], jnp.dtype(case["dtype"])
    apply, params, others = (_linen if form == "linen" else _nnx)(variant, dtype)
    last = ("block6", "block7", "top", "classifier")
    parts: dict[str, tuple[str, ...]] = {"classifier": last[3:], "block6": last}
    trained = {name: leaf for name, leaf in params.items() if name.startswith(parts.get(workload, ""))}
    frozen = {name: leaf for name, leaf in params.items() if name not in trained}

    def loss_of(trained: Any, others: Any, images: Any) -> Any:
        logits, updated = apply({**frozen, **trained}, others, images, workload == "trained")
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)), updated

    def forward(trained: Any, others: Any, images: Any) -> Any:
        return apply(trained, others, images, False)[0]

    function = forward if workload == "forward" else jax.value_and_grad(loss_of, has_aux=True)
    compiled = jax.jit(function).lower(trained, others, images).compile()
    return lambda: jax.block_until_ready(compiled(trained, others, images))


def _filled(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)


def _linen(variant: Any, dtype: Any) -> tuple[Callable[..., Any], Any, Any]:
    from plain_flax import PlainEfficientNet

    model = PlainEfficientNet(variant, dtype=dtype)
    variables = _filled(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))

    def apply(params: Any, others: Any, images: Any, train: bool) -> Any:
        return model.apply({"params": params, "batch_stats": others}, images, train, mutable=["batch_stats"])

    return apply, variables["params"], variables["batch_stats"]


def _nnx(variant: Any, dtype: Any) -> tuple[Callable[..., Any], Any, Any]:
    from flax import nnx
    from plain_nnx import NNXEfficientNet

    abstract = nnx.eval_shape(lambda: NNXEfficientNet(variant, dtype, nnx.Rngs(0)))
    graph, *states = nnx.split(abstract, nnx.Param, ...)
    params, others = (_filled(nnx.to_pure_dict(state)) for state in states)

    def apply(params: Any, others: Any, images: Any, train: bool) -> Any:
        model = nnx.merge(graph, nnx.State(params), nnx.State(others))
        logits = model(images, train)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return apply, params, others
