"""A table of labels beside the images."""

import shutil

import pytest

from effnet_jax.data.sources.folder import open_folder
from effnet_jax.errors import DataError


@pytest.fixture
def flat(image_folder):
    """A function that writes `labels.csv` over 20 images in one folder, `photos/cat_000.jpg` and so on."""
    source = image_folder(per_class={"train": 10}, vary=False)
    root = source.parent / "kaggle"
    (root / "photos").mkdir(parents=True)
    names = []
    for path in sorted(source.glob("train/*/*.jpg")):
        names.append(f"{path.parent.name}_{path.name}")
        shutil.copy(path, root / "photos" / names[-1])

    def write(line, *, header="path,label", name="labels.csv", more=()):
        lines = [header, *(line(image, image[:3]) for image in names), *more]
        (root / name).write_text("\n".join(lines) + "\n")
        return str(root)

    return write


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("path,label", "photos/{0},{1}"),
        ("id,breed", "{2},{1}"),  # as Kaggle's dogs have it: no folder, no ending
        ("\ufeffFilename;Class", "./photos/{0};{1}"),
        ("image\tx\tcategory", "{0}\t5\t{1}"),
        ('"path","label"', '"photos\\{0}","{1}"'),
    ],
)
def test_tables_as_they_are_shipped(flat, header, line):
    root = flat(lambda name, label: line.format(name, label, name[:-4]), header=header)
    dataset = open_folder(root, ["train", "validation", "test"])
    assert dataset.class_names == ("cat", "dog") and sum(dataset.sizes.values()) == 20 and not dataset.notes
    source = dataset.split("train")
    for index in range(len(source)):
        example = source[index]
        assert f"/{source.class_names[example['label']]}_" in example["id"]


def test_a_column_of_splits(flat):
    def line(name, label):
        return f"{name},{label},{'val' if name[4:7] in ('000', '001') else 'train'}"

    root = flat(line, header="path,label,split")
    dataset = open_folder(root, ["train", "val"])
    assert dataset.sizes == {"train": 16, "val": 4}


def test_tables_of_their_own_for_each_split(flat):
    flat(lambda name, label: f"{name},{label}" if name[6] > "1" else "", name="train.csv")
    root = flat(lambda name, label: f"{name},{label}" if name[6] <= "1" else "", name="valid.csv")
    assert open_folder(root, ["train", "validation"]).sizes == {"train": 16, "validation": 4}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["gone.jpg,cat"], r"labels.csv names images that are not below .*kaggle: 'gone.jpg' \(line 22\)\. Bring them"),
        (["cat_000.jpg,dog"], r"names photos/cat_000.jpg twice, in lines 2 and 22: remove one"),
        (["cat_000.jpg"], r"line 22 has 1 of 2 columns"),
        (["x.jpg,"], r"line 22: 'x.jpg' has no label"),
        (["x.jpg,NaN"], r"line 22: 'x.jpg' has no label"),
    ],
)
def test_what_is_wrong_with_a_table(flat, more, message):
    with pytest.raises(DataError, match=message):
        open_folder(flat(lambda name, label: f"{name},{label}", more=more), ["train"])


def test_columns_that_nobody_understands(flat):
    with pytest.raises(DataError, match="has the columns a, b: call the one with the images 'path'"):
        open_folder(flat(lambda name, label: f"{name},{label}", header="a,b"), ["train"])


def test_missing_images_may_be_skipped_and_are_counted(flat):
    root = flat(lambda name, label: f"{name},{label}" if name[6] != "3" else "", more=["gone.jpg,cat"])
    dataset = open_folder(root, ["train", "validation", "test"], on_bad_image="skip")
    assert sum(dataset.sizes.values()) == 18
    assert dataset.notes == (
        "3 files were not read: 2 images that labels.csv does not name, 1 that labels.csv names and that are not there",
    )


def test_a_file_of_another_folder_is_not_taken_for_one_that_is_missing(flat, tmp_path):
    root = flat(lambda image, label: f"photos/{image},{label}", more=["train/other.jpg,cat"])
    (tmp_path / "kaggle" / "test").mkdir()
    shutil.copy(tmp_path / "kaggle" / "photos" / "cat_000.jpg", tmp_path / "kaggle" / "test" / "other.jpg")
    with pytest.raises(DataError, match=r"names images that are not below .*train/other\.jpg"):
        open_folder(root, ["all"])


def test_a_table_beside_splits_of_folders_is_told_to_be_unread(image_folder):
    root = image_folder()
    (root / "labels.csv").write_text("path,label\ntrain/cat/000.jpg,dog\n")
    dataset = open_folder(str(root), ["train"])
    assert dataset.class_names == ("cat", "dog")
    assert "labels.csv was not read, since train/ hold folders" in dataset.notes[0]
