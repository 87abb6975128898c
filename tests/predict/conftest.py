"""Small weights, whose programs compile quickly, and images of noise."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from effnet_jax.predict import Classifier, load_classifier
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import write_weights
from tests import synthetic

CLASSES = tuple(f"class {number}" for number in range(10))


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A weights dir of Lite0 with ten classes, for images of 32 pixels."""
    path = tmp_path_factory.mktemp("predict") / "lite0"
    metadata = Metadata("lite0", "lite", "lite", "none", 32, 10, CLASSES, evaluation="resize")
    write_weights(path, synthetic.variables("lite0", num_classes=10), metadata)
    return path


@pytest.fixture(scope="session")
def trunk(weights, tmp_path_factory) -> Path:
    """The same without a classifier."""
    from effnet_jax.weights.store import read_weights

    variables, metadata = read_weights(weights)
    del variables["params"]["classifier"]
    path = tmp_path_factory.mktemp("predict") / "trunk"
    write_weights(path, variables, dataclasses.replace(metadata, num_classes=0, class_names=()))
    return path


@pytest.fixture(scope="session")
def classify(weights) -> Classifier:
    """On one device, at most four images at a time."""
    return load_classifier(weights, batch_size=4, devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """A folder of 21 images, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for number in range(21):
        pixels = random.integers(0, 256, (40 + number, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "05.png").write_bytes(b"nonsense")
    (folder / "18.png").write_bytes((folder / "18.png").read_bytes()[:200])
    return folder
