"""What a run says about its own figures: at which figures it speaks, and which cure it names."""

import math

import pytest

from effnet_jax.train import advice
from effnet_jax.train.config import phase

TEN = math.log(10)


def test_a_first_loss_that_guessing_reaches_needs_no_advice():
    assert advice.above_guessing(phase(epochs=1), {}, {"loss": TEN}, 10) == []
    assert advice.above_guessing(phase(epochs=1), {}, {"loss": 1.09 * TEN}, 10) == []
    assert advice.above_guessing(phase(epochs=1), {}, {"loss": 9.0}, 1) == []
    assert advice.above_guessing(phase(epochs=1), {"loss": 9.0}, {"loss": 9.0}, 10) == []  # told before
    assert advice.above_guessing(phase(epochs=1), {"loss": TEN}, {"loss": 1e16}, 10)  # diverging later on


@pytest.mark.parametrize(
    ("keys", "said", "unsaid"),
    [
        ({"optimizer": "sgd"}, ["the learning rate is too high", "learning_rate=0.0256", "warm-up"], "momentum"),
        ({"optimizer": "sgd", "momentum": 0.99}, ["or the momentum is too high", "momentum=0.9"], "rmsprop"),
        ({"optimizer": "rmsprop", "momentum": 0.9}, ["rmsprop with momentum=0.9", "'sgd' or 'adamw'"], "nesterov"),
        ({"optimizer": "rmsprop", "momentum": 0.0}, ["the learning rate is too high"], "culprit"),
    ],
)
def test_a_first_loss_above_guessing_names_rate_and_momentum(keys, said, unsaid):
    (sentence,) = advice.above_guessing(phase(epochs=1, learning_rate=0.256, **keys), {}, {"loss": 4.0}, 10)
    assert "an epoch, 4, is" in sentence and "2.30" in sentence
    assert all(text in sentence for text in said) and unsaid not in sentence


def test_a_fall_at_an_unfreezing_names_batch_norm_or_the_rate():
    assert advice.at_border({"accuracy": 0.8}, {"accuracy": 0.79}, "frozen") == []
    assert advice.at_border(None, {"accuracy": 0.7}, "train") == []
    assert advice.at_border({"accuracy": 0.8, "count": 120}, {"accuracy": 0.75}, "frozen") == []  # six images
    assert advice.at_border({"accuracy": 0.8, "count": 12_000}, {"accuracy": 0.75}, "frozen")
    (frozen,) = advice.at_border({"accuracy": 0.8}, {"accuracy": 0.7}, "frozen")
    (trained,) = advice.at_border({"accuracy": 0.8}, {"accuracy": 0.7}, "train")
    assert "by 10.0 points" in frozen and "learning rate is too high" in frozen and "batch_norm" not in frozen
    assert "batch_norm='frozen'" in trained and "a third of the learning rate" in trained


def test_overfitting_names_what_regularises():
    keys = phase(epochs=1, learning_rate=0.03)
    assert advice.at_end(keys, 256, {"accuracy": 0.9}, {"accuracy": 0.8}) == []
    assert advice.at_end(keys, 256, {"accuracy": 1.0}, None) == []
    (sentence,) = advice.at_end(keys, 256, {"accuracy": 1.0}, {"accuracy": 0.7})
    for cure in ("30 points", "learning_rate=0.01", "augment", "weight_decay", "dropout", "batch_size=64", "phase by"):
        assert cure in sentence
    assert "batch_size" not in advice.at_end(keys, 64, {"accuracy": 1.0}, {"accuracy": 0.7})[0]


def test_a_loss_that_is_no_number_names_step_checkpoint_and_cure():
    keys = phase(name="all", epochs=1, learning_rate=0.5, optimizer="rmsprop")
    message = advice.not_finite("loss", 17, keys, "the last good checkpoint is step 12")
    for text in ("step 17 of phase 'all'", "checkpoint is step 12", "learning_rate=0.05", "'sgd'", "or clip_norm=1.0"):
        assert text in message
    clipped = advice.not_finite("gradient", 17, phase(epochs=1, clip_norm=1.0), "no checkpoint was saved yet")
    assert "no checkpoint was saved yet" in clipped and "clip_norm" not in clipped and "or a warm-up" in clipped
