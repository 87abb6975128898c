"""Arrays and .npz files."""

import numpy as np
import pytest

from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.arrays import from_arrays
from effnet_jax.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
LABELS = np.arange(10) % 3


@pytest.mark.parametrize("keys", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_npz_with_splits(tmp_path, keys):
    path = tmp_path / "data.npz"
    arrays = {}
    for split, part in (("train", slice(0, 7)), ("test", slice(7, 10))):
        arrays[keys[0].format(split)] = IMAGES[part]
        arrays[keys[1].format(split)] = LABELS[part][:, None]  # Keras gives labels a second axis
    np.savez(path, **arrays, class_names=np.array(["a", "b", "c"]))
    source = open_source({"name": str(path)}, "train[5:]+test")
    assert np.array_equal(source.images, IMAGES[5:])
    assert np.array_equal(source.labels, LABELS[5:]) and source.labels.dtype == np.int32
    assert source.class_names == ("a", "b", "c")
    assert source.fixed_shape == (8, 8, 3)
    assert source[2]["id"] == f"{path} test/0"


@pytest.mark.parametrize("keys", [("image", "label"), ("images", "labels"), ("data", "target"), ("X", "y")])
def test_npz_without_splits_is_the_split_train(tmp_path, keys):
    np.savez(tmp_path / "data.npz", **dict(zip(keys, (IMAGES, LABELS), strict=True)))
    source = open_source({"name": str(tmp_path / "data.npz")}, "train[:70%]")
    assert len(source) == 7 and source.class_names == ("0", "1", "2")


def test_classes_are_those_of_all_splits(tmp_path):
    np.savez(tmp_path / "d.npz", x_train=IMAGES[:2], y_train=LABELS[:2], x_test=IMAGES[2:], y_test=LABELS[2:])
    assert open_source({"name": str(tmp_path / "d.npz")}, "train").class_names == ("0", "1", "2")


def test_grey_arrays_get_three_channels():
    for grey in (IMAGES[..., 0], IMAGES[..., :1]):
        assert np.array_equal(from_arrays(grey, LABELS).images, np.repeat(IMAGES[..., :1], 3, -1))


def test_large_arrays_are_photographs():
    assert from_arrays(np.zeros((2, 97, 8, 3), np.uint8), [0, 1]).fixed_shape is None


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (IMAGES, LABELS - 1, (), r"outside 0\.\.1, the first at position 0: -1"),
        (IMAGES, LABELS, ("a", "b"), r"3 label\(s\) are outside 0..1, the first at position 2: 2"),
        (IMAGES / 255.0, LABELS, (), r"float64, expected uint8.*go from 0 to 1: multiply by 255"),
        (IMAGES.astype(np.int64), LABELS, (), "int64, expected uint8"),
        (IMAGES, LABELS[:-1], (), "10 images and 9 labels"),
        (IMAGES[:0], LABELS[:0], (), "0 images"),
        (IMAGES, np.eye(3)[LABELS], (), r"shape \[10, 3\].*argmax"),
        (IMAGES, LABELS + 0.5, (), "not class numbers"),
        (IMAGES, np.array(["a"] * 10), ("a",), "not class numbers"),
        (IMAGES[..., :2], LABELS, (), r"shape \[10, 8, 8, 2\], expected \[N, h, w, 3\]"),
    ],
)
def test_wrong_arrays(images, labels, names, message):
    with pytest.raises(DataError, match=message):
        from_arrays(images, labels, names)


def test_wrong_npz(tmp_path):
    path = tmp_path / "d.npz"
    with pytest.raises(DataError, match="there is no such file"):
        open_source({"name": str(path)}, "train")
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match="cannot be read"):
        open_source({"name": str(path)}, "train")
    np.savez(path, a=IMAGES)
    with pytest.raises(DataError, match="holds the arrays a: name them x_train"):
        open_source({"name": str(path)}, "train")
    np.savez(path, image=np.array([print], object), label=LABELS)
    with pytest.raises(DataError, match="cannot be read .*numbers or strings only"):
        open_source({"name": str(path)}, "train")
    np.savez(path, x_train=IMAGES, y_train=LABELS)
    with pytest.raises(DataError, match="no split 'test' .it has train."):
        open_source({"name": str(path)}, "test")


def test_labels_may_be_texts_and_names_bytes(tmp_path):
    np.savez(tmp_path / "d.npz", x_train=IMAGES[:4], y_train=np.array(["b", "a", "b", "c"]),
             x_test=IMAGES[4:6], y_test=np.array(["a", "c"]))  # fmt: skip
    train, test = (open_source({"name": str(tmp_path / "d.npz")}, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert train.labels.tolist() == [1, 0, 1, 2] and test.labels.tolist() == [0, 2]
    np.savez(tmp_path / "n.npz", image=IMAGES[:2], label=[0, 1], class_names=np.array([b"cat", b"dog"]))
    assert open_source({"name": str(tmp_path / "n.npz")}, "train").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, np.nan, 1.0], r"1 label\(s\) are no numbers, the first at position 1: leave these images out"),
        ([0.5, 1.0, 0.0], "labels have fractions"),
        ([0, 2_000_000, 0], r"2 different labels up to 2,000,000, .*numpy.unique\(labels, return_inverse=True\)"),
        ([True, False, True], "labels are bool"),
    ],
)
def test_labels_that_cannot_be_classes(labels, message):
    with pytest.raises(DataError, match=message):
        from_arrays(IMAGES[:3], np.array(labels))


@pytest.mark.parametrize(("low", "high", "cure"), [(-1, 1, "add 1, multiply by 127.5"), (0, 1, "multiply by 255"),
                                                   (0, 255, "images are float64.*: round and convert")])  # fmt: skip
def test_the_cure_for_floats_fits_their_range(low, high, cure):
    with pytest.raises(DataError, match=cure):
        from_arrays(np.linspace(low, high, IMAGES[:2].size).reshape(IMAGES[:2].shape), [0, 1])
