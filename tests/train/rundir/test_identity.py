"""Data and weights that changed between two starts of a run."""

import json

import numpy as np
import pytest

from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.base import ArraySource
from effnet_jax.train.rundir.identity import describe_run, identity_changes
from effnet_jax.weights.metadata import Metadata


def described(root, weights=None):
    data = {"name": str(root)}
    sources = {split: open_source(data, split) for split in ("train", "test")}
    return json.loads(json.dumps(describe_run(sources, str(root), weights)))


def rename(root, old, new):
    for split in ("train", "validation", "test"):
        (root / split / old).rename(root / split / new)


def test_the_same_data_elsewhere_is_the_same(image_folder, tmp_path):
    root = image_folder()
    before = described(root)
    root.rename(tmp_path / "moved")
    assert identity_changes(before, described(tmp_path / "moved")) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "train" / "cat" / "new.jpg").write_bytes((root / "train/cat/000.jpg").read_bytes()),
         ["train: 8 images before, 9 now: new: train/cat/new.jpg"]),
        (lambda root: (root / "test" / "dog" / "001.jpg").unlink(),
         ["test: 4 images before, 3 now: gone: test/dog/001.jpg"]),
        (lambda root: rename(root, "cat", "elk"), ["classes: new: elk; gone: cat"]),
    ],
)  # fmt: skip
def test_what_changed_is_named(image_folder, change, told):
    root = image_folder()
    before = described(root)
    change(root)
    changes = identity_changes(before, described(root))
    assert changes[: len(told)] == told


def test_classes_that_swap_their_numbers_are_told(image_folder):
    root = image_folder()
    before = described(root)
    after = {**before, "class_names": before["class_names"][::-1]}
    assert identity_changes(before, after) == ["classes: the same, in another order"]


def test_arrays_are_told_apart_by_labels_and_pixels():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 1], np.int32)

    def of(images, labels):
        source = ArraySource("six", images, labels, ("a", "b"))
        return json.loads(json.dumps(describe_run({"train": source}, "six.npz", None)))

    before = of(images, labels)
    assert identity_changes(before, of(images.copy(), labels.copy())) == []
    assert identity_changes(before, of(images, labels[::-1])) == ["train: other labels"]
    assert identity_changes(before, of(images[::-1], labels)) == ["train: other images under the same names"]


def test_other_weights_are_told(image_folder):
    root = image_folder()
    first, second = (
        Metadata("lite0", "lite", "lite", "pad32", 224, 2, checksums={"params/x": value}) for value in ("aa", "bb")
    )
    assert identity_changes(described(root, first), described(root, first)) == []
    assert identity_changes(described(root, first), described(root, second)) == ["weights: other values"]
