"""keras.applications on TensorFlow or on JAX, each under its own compiler of whole functions."""

import os
from collections.abc import Callable
from importlib import metadata
from typing import Any


def versions() -> str:
    """What runs."""
    found = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return ", ".join(
        f"{name} {found[name]}" for name in ("keras", "tensorflow", "tensorflow_cpu", "jax") if name in found
    )


def make(case: dict[str, Any], backend: str) -> Callable[[], Any]:
    """Makes a case."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    workload, batch, side = case["workload"], case["batch"], case["resolution"]
    if case["dtype"] == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    build = getattr(keras.applications, f"EfficientNet{case['variant'].upper()}")
    model = build(weights=None, input_shape=(side, side, 3))
    for layer in model.layers:
        after = layer.name.startswith(("block6", "block7", "top", "predictions"))
        layer.trainable = {"classifier": layer.name == "predictions", "block6": after}.get(workload, True)
        if isinstance(layer, keras.layers.BatchNormalization) and workload != "trained":
            layer.trainable = False
    return (_tensorflow if backend == "tensorflow" else _jax)(model, workload, batch, side)


def _tensorflow(model: Any, workload: str, batch: int, side: int) -> Callable[[], Any]:
    import tensorflow as tf

    images = tf.random.uniform((batch, side, side, 3), maxval=255.0)
    labels = tf.range(batch) % 1000

    @tf.function
    def forward() -> Any:
        return model(images, training=False)

    @tf.function
    def gradients() -> Any:
        with tf.GradientTape() as tape:
            chances = tf.cast(model(images, training=True), tf.float32)
            loss = tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy(labels, chances))
        return tape.gradient(loss, model.trainable_weights)

    function = forward if workload == "forward" else gradients

    def program() -> None:
        result = function()
        (result if workload == "forward" else result[-1]).numpy()

    return program


def _jax(model: Any, workload: str, batch: int, side: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    images = jax.random.uniform(jax.random.key(0), (batch, side, side, 3), maxval=255.0)
    labels = jnp.arange(batch) % 1000
    values = [[v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)]

    def loss_of(trained: Any, others: Any, images: Any) -> Any:
        chances, updated = model.stateless_call(trained, others, images, training=workload != "forward")
        chances = chances.astype(jnp.float32)
        return -jnp.mean(jnp.log(jnp.take_along_axis(chances, labels[:, None], 1))), updated

    function = loss_of if workload == "forward" else jax.value_and_grad(loss_of, has_aux=True)
    compiled = jax.jit(function).lower(*values, images).compile()
    return lambda: jax.block_until_ready(compiled(*values, images))
