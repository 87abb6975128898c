"""Image folders: layouts, order, and what is wrong with a folder."""

import shutil

import numpy as np
import pytest

from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.folder import list_folder
from effnet_jax.errors import DataError


def test_splits_classes_and_images(image_folder):
    root = image_folder(classes=("dog", "cat"))
    source = open_source({"name": str(root), "train": "train"}, "train")
    assert len(source) == 8
    assert source.class_names == ("cat", "dog")
    assert source.fixed_shape is None
    assert sorted(source.labels) == [0] * 4 + [1] * 4
    for index in range(len(source)):
        example = source[index]
        assert example["image"].ndim == 3 and example["image"].dtype == np.uint8
        assert f"/{source.class_names[example['label']]}/" in example["id"]
    with pytest.raises(IndexError):
        source[len(source)]


def test_a_slice_holds_all_classes_though_folders_are_sorted(image_folder):
    root = image_folder(classes=("a", "b", "c", "d"), per_class={"train": 20, "test": 1}, vary=False)
    head = open_source({"name": str(root)}, "train[:50%]")
    rest = open_source({"name": str(root)}, "train[50%:]")
    assert set(head.labels) == set(rest.labels) == {0, 1, 2, 3}
    paths = {head.example_id(i) for i in range(len(head))} | {rest.example_id(i) for i in range(len(rest))}
    assert len(paths) == 80


def test_order_does_not_depend_on_the_place_of_the_folder(image_folder, tmp_path):
    root = image_folder()
    shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    first = open_source({"name": str(root)}, "train")
    second = open_source({"name": str(tmp_path / "elsewhere" / "copy")}, "train")
    assert first.records.paths == second.records.paths


def test_a_root_without_splits_is_split_by_hash(image_folder):
    root = image_folder(per_class={"train": 100}, vary=False) / "train"
    splits, in_folders = list_folder(str(root))
    assert not in_folders
    sizes = {split: sum(map(len, classes.values())) for split, classes in splits.items()}
    assert sum(sizes.values()) == 200
    assert 0.7 < sizes["train"] / 200 < 0.9 and sizes["validation"] > 5 and sizes["test"] > 5
    before = set(splits["test"]["cat"])
    (root / "cat" / "another.jpg").write_bytes((root / "cat" / "000.jpg").read_bytes())
    after = set(list_folder(str(root))[0]["test"]["cat"])
    assert after - {"cat/another.jpg"} == before  # a new image moves no other


def test_left_behind_files_are_ignored(image_folder):
    root = image_folder()
    (root / ".ipynb_checkpoints").mkdir()
    (root / "train" / "__MACOSX").mkdir()
    (root / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "cat" / "notes.txt").write_bytes(b"x")
    assert len(open_source({"name": str(root)}, "train")) == 8


def test_upper_case_suffixes_count(image_folder):
    root = image_folder()
    (root / "train" / "cat" / "000.jpg").rename(root / "train" / "cat" / "000.JPEG")
    assert len(open_source({"name": str(root)}, "train")) == 8


def wreck(root, how):
    if how == "empty class":
        (root / "train" / "eel").mkdir()
        return r"eel is an empty class folder"
    if how == "class in train only":
        shutil.copytree(root / "train" / "cat", root / "train" / "eel")
        return r"class 'eel' is in train but not in test, validation"
    if how == "class missing in train":
        for split in ("validation", "test"):
            shutil.copytree(root / split / "cat", root / split / "eel")
        return r"class 'eel' is in test and validation but not in train"
    if how == "images at the top":
        shutil.copy(root / "train" / "cat" / "000.jpg", root)
        return "holds images directly, without classes"
    if how == "mixed layouts":
        shutil.copytree(root / "train" / "cat", root / "cat")
        return "cat holds images and test holds folders"
    if how == "empty split":
        (root / "extra").mkdir()
        return "extra is an empty split"
    if how == "nothing":
        shutil.rmtree(root)
        root.mkdir()
        return "holds no images"
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "empty class",
        "class in train only",
        "class missing in train",
        "images at the top",
        "mixed layouts",
        "empty split",
        "nothing",
    ],
)
def test_wrong_folders(image_folder, how):
    root = image_folder()
    message = wreck(root, how)
    with pytest.raises(DataError, match=message):
        open_source({"name": str(root)}, "train")


def test_unknown_split_names_the_nearest(image_folder):
    root = image_folder()
    with pytest.raises(DataError, match="no split 'valid' .*test, train, validation.*did you mean 'validation'"):
        open_source({"name": str(root)}, "valid")


def test_a_file_that_vanishes_is_named(image_folder):
    root = image_folder()
    source = open_source({"name": str(root)}, "train")
    path = source.example_id(0)
    (root / path).unlink()
    with pytest.raises(DataError, match="cannot be read: No such file") as error:
        source[0]
    assert path in str(error.value)
