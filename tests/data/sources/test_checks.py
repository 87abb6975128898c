"""Checks between splits, and between the data and the model."""

import shutil

import numpy as np
import pytest
from PIL import Image

from effnet_jax.data.duplicates import find_equal, find_in_two_splits
from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.arrays import from_arrays
from effnet_jax.data.sources.checks import check_classes, check_splits, overlaps
from effnet_jax.data.sources.dataset import Dataset
from effnet_jax.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)


def source(indices, labels, name):
    return from_arrays(IMAGES[list(indices)], np.array(labels), ("a", "b", "c"), name=name)


def test_clean_splits_give_no_warning():
    assert check_splits({"train": source((0, 1, 2), (0, 1, 2), "t"), "test": source((3, 4, 5), (0, 1, 2), "e")}) == []


def test_duplicates_in_memory_are_listed():
    train, test = source((0, 1, 2), (0, 1, 2), "train"), source((3, 1, 0), (0, 1, 2), "test")
    assert find_equal(train, test) == ([("train/1", "test/1"), ("train/0", "test/2")], "")
    (warning,) = find_in_two_splits({"train": train, "test": test})
    assert warning.startswith("2 image(s) of test are in train too") and "train/1 = test/1" in warning


def test_duplicate_files_are_listed(image_folder):
    root = image_folder()
    shutil.copy(root / "train" / "dog" / "002.jpg", root / "test" / "dog" / "again.jpg")
    sources = {role: open_source({"name": str(root)}, role) for role in ("train", "validation", "test")}
    warnings = [warning for warning in find_in_two_splits(sources) if "test/dog/again.jpg" in warning]
    assert len(warnings) == 1 and "train/dog/002.jpg" in warnings[0]


def test_images_of_one_colour_are_not_taken_for_one_another(image_folder):
    root = image_folder()
    for split, colour in (("train", (10, 20, 30)), ("test", (200, 100, 0))):
        Image.new("RGB", (50, 40), colour).save(root / split / "dog" / "flat.png")
    sources = {role: open_source({"name": str(root)}, role) for role in ("train", "test")}
    assert not [words for words in find_in_two_splits(sources, "similar") if "flat.png" in words]


def test_a_class_that_training_never_shows():
    with pytest.raises(DataError, match=r"test has classes of which train has no image: c\..*shuffle it"):
        check_splits({"train": source((0, 1), (0, 1), "train"), "test": source((2, 3), (0, 2), "test")})


def test_a_class_that_evaluation_lacks_is_a_warning():
    splits = {"train": source((0, 1), (0, 1), "train"), "test": source((2,), (0,), "test")}
    assert [warning.partition(":")[0] for warning in check_splits(splits)] == [
        "train has no image of c",
        "test has no image of b",
    ]


def test_one_class_teaches_nothing():
    with pytest.raises(DataError, match="train has images of one class only, b, so that nothing can be learnt"):
        check_splits({"train": source((0, 1), (1, 1), "train")})
    with pytest.raises(DataError, match="one class only, 'a'"):
        check_splits({"train": from_arrays(IMAGES, np.zeros(12, int), ("a",))})


def test_expressions_that_overlap_are_told():
    dataset = Dataset("six", ("a", "b"), {"train": 100, "test": 50}, lambda expression: None)
    expressions = {"train": "train[:90%]+test[:10]", "validation": "train[80%:]", "test": "test[10:]"}
    (warning,) = overlaps(dataset, expressions)
    assert warning.startswith("data.validation='train[80%:]' has 10 images of data.train=")


def test_classes_that_differ():
    other = from_arrays(IMAGES, np.zeros(12, int), ("a", "b", "d"), name="test")
    with pytest.raises(DataError, match="different classes: c, d"):
        check_splits({"train": source((0,), (0,), "train"), "test": other})


def test_class_count_against_the_model():
    train = source((0,), (0,), "photos train")
    check_classes(train, 3)
    with pytest.raises(DataError, match=r"photos train has 3 classes \(a, b, c\).*classifier 1000.*num_classes to 3"):
        check_classes(train, 1000)
