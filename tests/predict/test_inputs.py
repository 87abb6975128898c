"""What is taken for an image, and what is refused with the cure."""

import io
import os

import numpy as np
import pytest

from effnet_jax.data.view import EvaluationView
from effnet_jax.errors import DataError
from effnet_jax.predict.inputs import ViewedImages, check_array, draw, find_images, is_one


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8)), r"shape \(8, 8\) cannot be classified: give \[height, width, 3\] in RGB \(repeat a grey"),
        (np.zeros((8, 9, 4)), r"leave opacity out: image\[\.\.\., :3\]"),
        (np.zeros((3, 8, 8)), "put the channels last"),
        (np.zeros((0, 8, 3)), "cannot be classified"),
        (np.full((8, 8, 3), 0.5), "from 0.5 to 0.5, and levels go from 0 to 255: multiply by 255"),
        (np.linspace(-1, 1, 192).reshape(8, 8, 3), r"give \(image \+ 1\) \* 127.5"),
        (np.full((8, 8, 3), 300.0), r"np\.clip"),
        (np.full((8, 8, 3), -5), "levels go from 0 to 255"),
        (np.full((8, 8, 3), 65_535, np.uint16), "image // 257"),
        (np.full((8, 8, 3), np.nan), "no finite numbers"),
        (np.full((8, 8, 3), True), "is of type bool"),
        (np.full((8, 8, 3), "a"), "is of type"),
    ],
)
def test_arrays_that_are_no_levels(image, message):
    with pytest.raises(DataError, match=message):
        check_array(image)


def test_arrays_that_are():
    levels = np.arange(192).reshape(8, 8, 3)
    for dtype in (np.uint8, np.int64, np.uint16, np.float32, np.float16):
        np.testing.assert_array_equal(check_array(levels.astype(dtype)), levels)
    assert check_array(np.zeros((2, 2, 3))).dtype == np.uint8  # black, whatever its range
    assert check_array(np.full((2, 2, 3), 7.6)).max() == 8


def test_one_image_is_told_from_many():
    one = ["a.jpg", b"bytes", io.BytesIO(b"x"), np.zeros((8, 8, 3)), np.zeros((8, 8))]
    assert all(map(is_one, one))
    assert not any(map(is_one, [one, np.zeros((2, 8, 8, 3)), iter(one), np.array(["a.jpg", "b.jpg"])]))


def test_files_and_their_bytes_are_the_same_image(golden):
    path = golden / "preprocess" / "china.jpg"
    examples = ViewedImages(EvaluationView(32))
    with open(path, "rb") as file:
        with os.scandir(os.fsencode(path.parent)) as folder:  # whose paths are bytes, and no image's
            (entry,) = (entry for entry in folder if entry.name == b"china.jpg")
        images = [path, str(path), path.read_bytes(), file, entry]
        rows = [(row, draw(image, row)) for row, image in enumerate(images)]
    out = {"image": np.ones((6, 32, 32, 3), np.float32)}
    assert examples.fill([*rows, (5, None)], out) == []
    for row in range(1, 5):
        np.testing.assert_array_equal(out["image"][row], out["image"][0])
    assert out["image"][0].any() and not out["image"][5].any()


def test_what_cannot_be_read_leaves_its_row_empty(tmp_path, golden):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    text = open(__file__)  # noqa: SIM115
    with text, open(__file__, "rb") as closed:
        closed.close()
        files = [tmp_path / "broken.jpg", tmp_path / "gone.jpg"]
        images = [*files, b"", np.zeros((8, 8)), text, closed, "a\0.jpg", "\ud800"]
        rows = [(row + 3, draw(image, row)) for row, image in enumerate(images)]
    out = {"image": np.ones((8, 32, 32, 3), np.float32)}
    bad = dict(ViewedImages(EvaluationView(32)).fill(rows, out))
    assert list(bad) == [3, 4, 5, 6, 7, 8, 9, 10] and not out["image"].any()
    expected = ("broken.jpg", "no such file", "image 2 is an empty", "image 3 of shape", "as text")
    expected += ("closed file", "embedded null byte", "image 7 cannot be read")
    for words, error in zip(expected, bad.values(), strict=True):
        assert words in error


def test_find_images(image_folder, monkeypatch):
    root = image_folder()
    monkeypatch.chdir(root)
    (root / "train" / "notes.txt").touch()
    assert len(find_images(["."])) == 16
    assert find_images(["test/cat", "train/dog/00[01].jpg", "train/notes.txt"]) == [
        "test/cat/000.jpg",
        "test/cat/001.jpg",
        "train/dog/000.jpg",
        "train/dog/001.jpg",
        "train/notes.txt",
    ]
    assert len(find_images(["**/cat/*.jpg"])) == 8
    monkeypatch.setenv("HOME", str(root))  # which a shell does not expand in a pattern in quotes
    assert find_images(["~/test/cat/*.jpg"]) == [str(root / "test" / "cat" / f"00{index}.jpg") for index in (0, 1)]
    (root / "empty").mkdir()
    for name, message in (
        ("empty", "holds no images"),
        ("nothing.jpg", r"nothing\.jpg: the file does not exist"),
        ("*.jpg", r"\*\.jpg: the pattern matches no file"),
        ("n" * 300, r"it cannot be reached \(File name too long\)"),  # as where a folder may not be entered
    ):
        with pytest.raises(DataError, match=message):
            find_images([name])
