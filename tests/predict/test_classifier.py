"""Classifying images from Python, with the real weights of EfficientNet-Lite0 and with small ones."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from effnet_jax import load_classifier, predict
from effnet_jax.data.decode import decode_image
from effnet_jax.errors import ConfigError, DataError, WeightsError
from effnet_jax.predict import load_features
from effnet_jax.weights.port import port_checkpoint
from effnet_jax.weights.store import read_weights, write_weights


@pytest.fixture(scope="module")
def lite0(lite0_pth, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "lite0"
    port_checkpoint(lite0_pth, path)
    return path


@pytest.fixture(scope="module")
def classify_photographs(lite0) -> predict.Classifier:
    return load_classifier(lite0)


def photograph(name: str) -> str:
    datasets = pytest.importorskip("sklearn.datasets")
    return str(Path(datasets.__file__).parent / "images" / name)


def test_a_palace_is_a_palace(classify_photographs):
    (row,) = classify_photographs([photograph("china.jpg")])
    assert row.shape == (1000,) and row.sum() == pytest.approx(1, abs=1e-4)
    assert classify_photographs.class_names[int(row.argmax())] == "palace"
    assert 0.15 < row.max() < 0.35


def test_paths_and_arrays_of_all_sizes_alone_and_together(classify_photographs, golden):
    paths = [golden / "preprocess" / "china.jpg", str(golden / "preprocess" / "tiny_90x70.jpg")]
    arrays = [decode_image(path) for path in paths]
    together = classify_photographs([*paths, *arrays])
    assert together.shape == (4, 1000)
    np.testing.assert_array_equal(together[:2], together[2:])
    np.testing.assert_allclose(classify_photographs(paths[:1])[0], together[0], atol=1e-5)
    assert classify_photographs([]).shape == (0, 1000)
    np.testing.assert_allclose(classify_photographs(arrays[0][None]), together[:1], atol=1e-5)


def test_what_cannot_be_classified(classify, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        classify([tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match=r"shape \(8, 8\) cannot be classified: give \[height, width, 3\]"):
        classify([np.zeros((8, 8))])
    with pytest.raises(DataError, match="multiply by 255"):
        classify([np.full((8, 8, 3), 0.5)])


def test_small_images_go_straight_to_the_resolution(weights):
    """Weights trained on small images see them whole, not a crop of them."""
    seen = load_classifier(weights)._viewed
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    out = {"image": np.zeros((2, 32, 32, 3), np.float32)}
    assert seen.fill([(0, ("a", image)), (1, ("b", np.full((16, 16, 3), 7, np.uint8)))], out) == []
    np.testing.assert_array_equal(out["image"][0], image)
    np.testing.assert_allclose(out["image"][1], 7, atol=1e-4)


def test_flipped_too(weights, classify):
    flip = load_classifier(weights, batch_size=4, tta="flip", devices=jax.devices()[:1])
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = (classify(images) + classify(np.ascontiguousarray(images[:, :, ::-1]))) / 2
    np.testing.assert_allclose(flip(images), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="tta='flop': did you mean 'flip'"):
        load_classifier(weights, tta="flop")


def test_a_temperature_divides_the_logits(weights, classify, tmp_path):
    variables, metadata = read_weights(weights)
    write_weights(tmp_path / "hot", variables, dataclasses.replace(metadata, temperature=3.0))
    hot = load_classifier(tmp_path / "hot", batch_size=4, devices=jax.devices()[:1])
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    logits = np.log(classify(images)) / 3
    np.testing.assert_allclose(hot(images), np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-3)


def test_weights_that_give_no_numbers(weights, tmp_path):
    variables, metadata = read_weights(weights)
    variables["params"]["classifier"]["bias"] = np.float32([0] * 9 + [np.nan])
    write_weights(tmp_path / "diverged", variables, metadata)
    classify = load_classifier(tmp_path / "diverged", batch_size=1, devices=jax.devices()[:1])
    stream = classify.stream([np.zeros((8, 8, 3), np.uint8)], on_error="entry")
    with pytest.raises(WeightsError, match="diverged gives values that are no finite numbers"):
        next(stream)


def test_features_are_what_the_classifier_takes(weights, trunk, classify):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    features = load_features(weights, batch_size=4, devices=jax.devices()[:1])
    found = features(images)
    assert found.shape == (3, features.width) == (3, 1280) and found.dtype == np.float32
    dense = read_weights(weights)[0]["params"]["classifier"]
    logits = found @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), classify(images), atol=1e-5)
    np.testing.assert_array_equal(load_features(trunk, batch_size=4, devices=jax.devices()[:1])(images), found)
    assert features([]).shape == (0, 1280)


def test_weights_without_a_classifier(lite0_pth, tmp_path):
    port_checkpoint(lite0_pth, tmp_path / "trunk", notop=True)
    with pytest.raises(WeightsError, match="has no classifier .* load_features"):
        load_classifier(tmp_path / "trunk")


def test_b0_of_the_published_weights(shared, tmp_path):
    port_checkpoint(shared / "weights" / "efficientnet_b0_imagenet_tf_names.npz", tmp_path / "b0")
    classify = load_classifier(tmp_path / "b0")
    likeliest = predict.predictions(classify([photograph("china.jpg")])[0], classify.class_names, 1)
    assert likeliest[0]["class"] == "palace" and likeliest[0]["probability"] == pytest.approx(0.386, abs=0.003)

    # An independent implementation (Keras), which resized with Pillow's antialiased bicubic, said this.
    with Image.open(photograph("china.jpg")) as image:
        side = int(224 / 256 * min(image.size))
        left, top = ((length - side + 1) // 2 for length in image.size)
        square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    variables, metadata = read_weights(tmp_path / "b0")
    write_weights(tmp_path / "whole", variables, dataclasses.replace(metadata, crop="none"))
    row = load_classifier(tmp_path / "whole")([np.asarray(square)])[0]
    found = {classify.class_names[index]: round(float(row[index]), 3) for index in np.argsort(-row)[:5]}
    assert found == pytest.approx(
        {"palace": 0.388, "bell cote": 0.148, "castle": 0.125, "monastery": 0.076, "lakeside": 0.055}, abs=0.002
    )
