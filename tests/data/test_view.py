"""What a model sees in evaluation: as training saw it, or as the original's rule has it."""

import numpy as np
import pytest
from PIL import Image

from effnet_jax.data.preprocess import evaluation_image, training_square
from effnet_jax.data.resize import resize_bicubic
from effnet_jax.data.view import EvaluationView


def test_the_originals_rule_is_the_originals():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    assert np.array_equal(EvaluationView(24, crop="pad32")(image), evaluation_image(image, 24, "pad32"))
    assert np.array_equal(EvaluationView(24, "resize")(image), resize_bicubic(image, 24, 24))


def test_a_large_photograph_is_as_smooth_as_in_training():
    """Noise of 20 levels: a square for training has little of it left, and so has what is evaluated."""
    noisy = np.clip(128 + np.random.default_rng(0).normal(0, 20, (1500, 2000, 3)), 0, 255).astype(np.uint8)
    trained = training_square(noisy, 256)[0].std()
    assert EvaluationView(224, resize="bicubic")(noisy).std() > 5 * trained
    assert EvaluationView(224, resize="antialias")(noisy).std() == pytest.approx(trained, rel=0.2)


def test_the_crop_is_the_same_for_both():
    image = np.zeros((300, 400, 3), np.uint8)
    image[:, 200:] = 255
    for resize in ("bicubic", "antialias"):
        seen = EvaluationView(100, crop="none", resize=resize)(image)
        assert seen.shape == (100, 100, 3) and seen.dtype == np.float32
        assert seen[:, :48].max() < 1 and seen[:, 53:].min() > 254
    enlarged = EvaluationView(64, "resize", resize="antialias")(image[:16, :16])
    wanted = Image.fromarray(image[:16, :16]).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(enlarged, np.asarray(wanted, np.float32))
