"""One training step and one evaluation step: pure functions of (state, batch)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from effnet_jax.data.augment import resize_on_device
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.train.step.state import TrainState, Variables, update_ema

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Augment = Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]
Others = dict[str, Any]  # what a gradient depends on besides: frozen, batch_stats, seed, step
# (trained, others, batch) → (gradients, moving statistics, metrics)
Gradients = Callable[[Any, Others, Batch], tuple[Any, Any, Metrics]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Variables, Batch], Metrics]

# What randomness is for. A number is never given to another purpose: runs would change.
PURPOSE_INIT, PURPOSE_AUGMENT, PURPOSE_MODEL = range(3)


def example_keys(seed: int | jax.Array, purpose: int, step: jax.Array, index: jax.Array) -> jax.Array:
    """Returns a random key for each example of a step: a pure function of (seed, purpose, step, example).

    Args:
      seed: of the run.
      purpose: one of the `PURPOSE_…` numbers.
      step: steps done before this one, int [], or a number for each example, int [N].
      index: position of each example in the source, int [N].

    Returns:
      N keys.
    """
    key = jax.random.fold_in(jax.random.key(seed), purpose)
    steps = jnp.broadcast_to(step, index.shape)
    return jax.vmap(lambda step, example: jax.random.fold_in(jax.random.fold_in(key, step), example))(steps, index)


def view_keys(
    seed: int | jax.Array, step: jax.Array, batch: Batch, views: int = 0, *, repeats: bool = False
) -> jax.Array:
    """Returns the keys that a step augments its examples with.

    Args:
      seed: of the run.
      step: steps done before this one.
      batch: with `index` and `epoch`, int [N].
      views: how many views of each example are shown in turn, one an epoch; 0: a new one each time.
      repeats: whether a step may show an example several times (`moments`).

    Returns:
      N keys.
    """
    times = batch["epoch"] % views if views else moments(step, batch, repeats)
    return example_keys(seed, PURPOSE_AUGMENT, times, batch["index"])


def moments(step: jax.Array, batch: Batch, repeats: bool = False) -> jax.Array:
    """What tells two showings of one example apart, in place of a step: the step, or int [N] where it `repeats`.

    In a balanced order an image of a small class may come several times in one step: each time in another epoch of its
    class, which gives it another view and other noise.
    """
    return batch["epoch"] if repeats else step


def unit_dtype(model: Any, inputs: jax.Array) -> Any:
    """The type that a unit's output has in the model, whatever it was kept in: pooled features are float32."""
    return model.dtype if inputs.ndim == 4 else jnp.float32


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of soft targets in float32: [N, classes] twice → [N]."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def example_weights(targets: jax.Array, class_weights: Any, smoothing: float = 0.0) -> jax.Array:
    """What each example counts in the loss: the mean of its classes' weights, by their shares in its target.

    Of mixed examples each has its share. What label smoothing gives to all classes alike says nothing of an image, and
    is taken out: else it would pull every example towards the weights' mean over classes, which may be far above 1.

    Args:
      targets: soft targets, float32 [N, classes].
      class_weights: float32 [classes].
      smoothing: the share of the targets that is spread over all classes, below 1.

    Returns:
      float32 [N].
    """
    whole = jnp.sum(targets * class_weights, -1)  # no matrix product, which some devices round
    return (whole - smoothing * jnp.mean(class_weights)) / (1 - smoothing)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a training step makes of a batch, and how the loss looks at it.

    Attributes:
      augment: from `make_augment`: (batch, N keys) → (images [N, R, R, 3], soft targets [N, classes]).
      views: see `view_keys`.
      first: the unit to start from, where `augment` gives what that unit takes instead of images; None is the stem.
      class_weights: float32 [classes], from which `example_weights` follow; None: 1. A batch's loss is the mean over
        its examples and not over their weights, so that no example counts differently on another device.
      smoothing: the label smoothing of the targets that `augment` gives.
      repeats: see `moments`.
    """

    augment: Augment
    views: int = 0
    first: str | None = None
    class_weights: Any = None
    smoothing: float = 0.0
    repeats: bool = False


def make_train_step(
    model: Any,
    plan: FreezePlan,
    optimizer: optax.GradientTransformation,
    inputs: Inputs | Augment,
    *,
    ema_decay: float = 0.0,
    averaged: Callable[[Gradients], Gradients] = lambda gradients: gradients,
) -> TrainStep:
    """Makes the training step of a phase.

    Only the plan's trained leaves are differentiated, so that a frozen trunk costs its forward pass and no more;
    frozen parameters and still statistics leave the step as they came, to the bit.

    Under SAM a second gradient is taken at the perturbed trained leaves, with the same views and the same noise. What
    the step reports, and the statistics that it keeps, are those of the weights themselves.

    Args:
      model: from `create_model`.
      plan: what is trained.
      optimizer: from `make_optimizer`.
      inputs: what it makes of a batch; or an augmentation alone.
      ema_decay: of the moving averages; 0: none are kept.
      averaged: makes the gradients of the global batch from those of a piece of it, as a `Partition` does.

    Returns:
      A function (state, batch) → (state, metrics `loss`, `accuracy`, `gradient_norm`): means over the global batch,
      the loss weighted where classes are, the norm over trained leaves only.
    """
    given = inputs if isinstance(inputs, Inputs) else Inputs(inputs)

    def of_piece(trained: Any, others: Others, batch: Batch) -> tuple[Any, Any, Metrics]:
        seed, step = others["seed"], others["step"]
        images, targets = given.augment(batch, view_keys(seed, step, batch, given.views, repeats=given.repeats))
        if given.first:
            images = images.astype(unit_dtype(model, images))
        noise = example_keys(seed, PURPOSE_MODEL, moments(step, batch, given.repeats), batch["index"])

        def loss_of(trained: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, updates = model.apply(
                {"params": plan.merge(trained, others["frozen"]), "batch_stats": others["batch_stats"]},
                images,
                first=given.first,
                train=plan.stochastic_units,
                update_batch_norm=plan.batch_norm_units,
                key=noise,
                mutable=["batch_stats"],
                method="run",
            )
            losses = cross_entropy(logits, targets)
            if given.class_weights is not None:
                losses = losses * example_weights(targets, given.class_weights, given.smoothing)
            return jnp.mean(losses), (logits, updates["batch_stats"])

        (loss, (logits, statistics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        hits = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
        metrics = {"loss": loss, "accuracy": jnp.mean(hits, dtype=jnp.float32)}
        return gradients, plan.split_statistics(statistics)[0], metrics

    gradients_of = averaged(of_piece)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained, frozen = plan.split(state.params)
        others = {"frozen": frozen, "batch_stats": state.batch_stats, "seed": state.seed, "step": state.step}
        gradients, moving, metrics = gradients_of(trained, others, batch)

        def whole(gradients: Any) -> Any:
            # The optimizer masks frozen leaves out by the plan's labels; the zeros only give the tree its shape.
            return plan.merge(gradients, jax.tree.map(jnp.zeros_like, frozen))

        def gradients_at(params: Any, _: int) -> Any:  # only SAM asks
            return whole(gradients_of(plan.split(params)[0], others, batch)[0])

        rule = optax.with_extra_args_support(optimizer)
        updates, opt_state = rule.update(whole(gradients), state.opt_state, state.params, grad_fn=gradients_at)
        _, still = plan.split_statistics(state.batch_stats)
        new = state.replace(
            step=state.step + 1,
            params=plan.merge(optax.apply_updates(trained, plan.split(updates)[0]), frozen),
            batch_stats={**still, **moving},
            opt_state=opt_state,
        )
        if state.ema is not None:
            new = new.replace(ema=update_ema(state.ema, new, plan, ema_decay))
        return new, {**metrics, "gradient_norm": optax.tree.norm(gradients)}

    return train_step


def make_logits(model: Any, *, resolution: int, first: str | None = None) -> Callable[[Variables, Batch], jax.Array]:
    """Makes (variables, batch with `image`) → logits [N, classes], as evaluation sees images.

    Args:
      model: from `create_model`.
      resolution: side of the images; small ones arrive as uint8 and are resized here.
      first: the unit to start from, where `image` holds what that unit takes; None is the stem.
    """

    def logits(variables: Variables, batch: Batch) -> jax.Array:
        inputs = batch["image"]
        if inputs.dtype == jnp.uint8:
            inputs = resize_on_device(inputs, resolution)
        if first:
            inputs = inputs.astype(unit_dtype(model, inputs))
        return model.apply(variables, inputs, first=first, method="run")

    return logits


def make_eval_step(model: Any, *, resolution: int, first: str | None = None) -> EvalStep:
    """Makes the evaluation step: sums over a batch, so that adding them up is exact for any number of examples.

    Args:
      model: as of `make_logits`.
      resolution: as of `make_logits`.
      first: as of `make_logits`.

    Returns:
      A function (variables, batch with `image`, `label`, `mask`) → sums `correct`, `loss`, `count`, float32 [].
    """
    logits_of = make_logits(model, resolution=resolution, first=first)

    def eval_step(variables: Variables, batch: Batch) -> Metrics:
        logits = logits_of(variables, batch)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
        mask = batch["mask"]
        # `where` and not a product: a padded row's loss may be anything, even not a number.
        return {
            "correct": jnp.sum(jnp.where(mask > 0, correct, 0.0)),
            "loss": jnp.sum(jnp.where(mask > 0, loss, 0.0)),
            "count": jnp.sum(mask),
        }

    return eval_step
