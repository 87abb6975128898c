"""Image folders: layouts, order, and what is wrong with a folder."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.dataset import ALPHABETICAL
from effnet_jax.data.sources.folder import open_folder
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
    relative = [
        [source.example_id(i).removeprefix(place) for i in range(8)]
        for source, place in ((first, str(root)), (second, str(tmp_path / "elsewhere" / "copy")))
    ]
    assert relative[0] == relative[1]


def test_a_root_without_splits_is_split_by_hash(image_folder):
    root = image_folder(per_class={"train": 100}, vary=False) / "train"
    before = open_folder(str(root))
    assert sum(before.sizes.values()) == 200
    assert 0.7 < before.sizes["train"] / 200 < 0.9 and before.sizes["validation"] > 5 and before.sizes["test"] > 5
    (root / "cat" / "another.jpg").write_bytes((root / "cat" / "000.jpg").read_bytes())
    after = open_folder(str(root))
    for split in before.sizes:  # a new image moves no other
        assert ids(after, split) - {f"{root}/cat/another.jpg"} == ids(before, split)


def ids(dataset, split):
    source = dataset.split(split)
    return {source.example_id(index) for index in range(len(source))}


def test_each_class_has_a_training_image_however_few_it_has(image_folder):
    classes = tuple(f"c{number:02d}" for number in range(60))
    dataset = open_folder(str(image_folder(classes=classes, per_class={"train": 1}, vary=False) / "train"))
    assert set(dataset.split("train").labels) == set(range(60))


def test_left_behind_files_are_ignored_and_others_told(image_folder):
    root = image_folder()
    (root / ".ipynb_checkpoints").mkdir()
    (root / "lost+found").mkdir()
    for name in ("__MACOSX", "@eaDir"):
        (root / "train" / name).mkdir()
    run = root / "train" / "run"
    shutil.copytree(root / "train" / "cat", run)
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    for name in (".DS_Store", "Thumbs.db"):
        (root / "train" / "cat" / name).write_bytes(b"x")
    dataset = open_folder(str(root), ["train"])
    assert (dataset.sizes, dataset.notes) == ({"train": 8}, ("class folders without images: train/run",))
    for name in ("a.heic", "b.HEIC", "notes.txt", "README"):
        (root / "train" / "cat" / name).write_bytes(b"x")
    (root / "train" / "dog" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    shutil.rmtree(run)
    (note,) = open_folder(str(root), ["train"]).notes
    assert note.startswith("5 files were not read: 2 .heic (convert them), ")
    assert "1 broken links" in note and "1 .txt" in note and "1 without an ending" in note


def test_names_as_cameras_and_people_write_them(image_folder):
    root = image_folder(classes=("_unknown", "caf\u00e9"))
    cat = root / "train" / "_unknown"
    (cat / "000.jpg").rename(cat / "_DSC0001.JPG")
    (cat / "001.jpg").rename(cat / "b.jfif")
    os.rename(os.fsencode(cat / "002.jpg"), os.fsencode(cat) + b"/\xe9t\xe9.jpg")
    (root / "validation" / "caf\u00e9").rename(root / "validation" / "cafe\u0301")  # as another system writes it
    dataset = open_folder(str(root), ["train", "validation"])
    assert dataset.class_names == ("_unknown", "caf\u00e9") and dataset.sizes == {"train": 8, "validation": 4}
    source = dataset.split("train")
    names = {source[index]["id"].rpartition("/")[2] for index in range(8)}  # each can be read, and named
    assert {"_DSC0001.JPG", "b.jfif", "\\xe9t\\xe9.jpg"} <= names
    assert [name.encode() for name in names]


def test_images_below_a_class_folder_belong_to_it_through_links_too(image_folder, tmp_path):
    root = image_folder()
    elsewhere = tmp_path / "elsewhere"
    (root / "train" / "cat").rename(elsewhere)
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "2024").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(root / "train" / "cat")
    dataset = open_folder(str(root), ["train"])
    assert dataset.sizes == {"train": 8}
    assert dataset.notes == ("1 file was not read: 1 linked folders that lead back into themselves",)
    assert dataset.split("train")[0]["image"].shape[2] == 3


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "VAL"])
def test_folders_that_stand_for_validation(image_folder, name):
    root = image_folder()
    (root / "validation").rename(root / "renamed")
    (root / "renamed").rename(root / name)
    (root / "train").rename(root / "Training")
    sources = {split: open_source({"name": str(root)}, split) for split in ("train", "validation", "test")}
    assert {split: len(source) for split, source in sources.items()} == {"train": 8, "validation": 4, "test": 4}


def test_only_what_is_asked_for_is_looked_at(image_folder):
    root = image_folder()
    shutil.copy(root / "train" / "cat" / "000.jpg", root)
    shutil.copytree(root / "train" / "cat", root / "stray")
    for path in (root / "test").glob("*/*.jpg"):
        path.rename(root / "test" / f"{path.parent.name}_{path.name}")
    for folder in ("cat", "dog"):
        (root / "test" / folder).rmdir()
    assert open_folder(str(root), ["train[:50%]", "validation"]).sizes == {"train": 8, "validation": 4}
    with pytest.raises(DataError, match=r"test holds images without class folders.*set data.test=''"):
        open_folder(str(root), ["train", "test"])


def test_classes_that_are_numbers_stand_in_their_order_and_old_runs_keep_theirs(image_folder):
    root = image_folder(classes=("10", "9", "100"))
    dataset = open_folder(str(root))
    assert dataset.class_names == ("9", "10", "100")
    source = dataset.split("train")
    assert all(f"/{source.class_names[source.labels[i]]}/" in source.example_id(i) for i in range(len(source)))
    assert open_folder(str(root), class_names=ALPHABETICAL).class_names == ("10", "100", "9")
    kept = open_folder(str(root), class_names=("100", "9", "10"))
    assert kept.class_names == ("100", "9", "10")
    source = kept.split("train")
    assert all(f"/{source.class_names[source.labels[i]]}/" in source.example_id(i) for i in range(len(source)))


def test_classes_that_are_called_like_a_split(image_folder):
    root = image_folder(classes=("train", "car"), per_class={"all": 10}) / "all"
    dataset = open_folder(str(root), ["train", "validation"])
    assert dataset.class_names == ("car", "train") and sum(dataset.sizes.values()) == 20


def test_folds_are_splits(image_folder):
    root = image_folder(per_class={"fold1": 2, "fold2": 3})
    assert open_folder(str(root), ["fold1", "fold2"]).sizes == {"fold1": 4, "fold2": 6}
    assert open_folder(str(root)).sizes == {"fold1": 4, "fold2": 6}


def test_upper_case_suffixes_count(image_folder):
    root = image_folder()
    (root / "train" / "cat" / "000.jpg").rename(root / "train" / "cat" / "000.JPEG")
    assert len(open_source({"name": str(root)}, "train")) == 8


def wreck(root, how):
    if how == "no class at all":
        for path in root.iterdir():
            shutil.rmtree(path)
        shutil.copy(image(root.parent), root / "a.jpg")
        return "holds images directly, without classes"
    if how == "empty split":
        shutil.rmtree(root / "train" / "cat")
        shutil.rmtree(root / "train" / "dog")
        return "train is an empty split: add class folders"
    if how == "nothing":
        shutil.rmtree(root)
        root.mkdir()
        (root / "eel").mkdir()
        (root / "eel" / "a.heic").write_bytes(b"x")
        return r"holds no images \(1 file was not read: 1 .heic \(convert them\)"
    raise AssertionError(how)


def image(folder):
    Image.new("RGB", (9, 9)).save(folder / "a.jpg")
    return folder / "a.jpg"


@pytest.mark.parametrize("how", ["no class at all", "empty split", "nothing"])
def test_wrong_folders(image_folder, how):
    root = image_folder()
    message = wreck(root, how)
    with pytest.raises(DataError, match=message):
        open_source({"name": str(root)}, "train")


def test_a_folder_that_cannot_be_listed(image_folder, monkeypatch):
    root = image_folder()
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)  # root may read everything
    with pytest.raises(DataError, match=r"train/cat cannot be listed \(Permission denied\): give it permission"):
        open_source({"name": str(root)}, "train")


def test_unknown_split_names_the_nearest(image_folder):
    root = image_folder()
    with pytest.raises(DataError, match="no split 'trian' .*it has .*train.*did you mean 'train'"):
        open_folder(str(root), ["train", "trian"]).split("trian")


def test_a_file_that_vanishes_is_named(image_folder):
    root = image_folder()
    source = open_source({"name": str(root)}, "train")
    path = source.example_id(0)
    (root / path).unlink()
    with pytest.raises(DataError, match="cannot be read: No such file") as error:
        source[0]
    assert path in str(error.value)


def test_a_class_with_json_files_beside_its_images_is_no_run_dir(image_folder):
    root = image_folder()
    for name in ("config.json", "data.json"):
        (root / "train" / "cat" / name).write_text("{}")
    assert len(open_folder(str(root), ["train"]).split("train")) == 8
