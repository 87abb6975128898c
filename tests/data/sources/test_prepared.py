"""Sets prepared by tensorflow-datasets, and what effnet_jax.prepare writes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from effnet_jax.data.prepare import prepare_files, prepare_named
from effnet_jax.data.preprocess import training_square
from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.prepared import prepared_below
from effnet_jax.errors import ConfigError, DataError


@pytest.fixture
def small_set(tmp_path):
    """A prepared set of ten 8x8 images, as `data_dir/digits/1.0.0`."""
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "digits.npz", x_train=images[:8], y_train=np.arange(8) % 2, x_test=images[8:], y_test=[0, 1])
    prepare_files(str(tmp_path / "digits.npz"), str(tmp_path / "data" / "digits"))
    return tmp_path / "data", images


def test_real_cifar100(shared):
    data = {"name": "cifar100", "data_dir": str(shared / "data" / "tfds"), "validation": "test[:5%]"}
    source = open_source(data, "validation")
    assert len(source) == 500 and source.fixed_shape == (32, 32, 3)
    assert len(source.class_names) == 100 and source.class_names[:2] == ("apple", "aquarium_fish")

    import tensorflow_datasets as tfds

    theirs = tfds.data_source("cifar100", split="test[:5%]", data_dir=str(shared / "data" / "tfds"))
    for index in (0, 7, 499):
        assert np.array_equal(theirs[index]["image"], source[index]["image"])
        assert theirs[index]["label"] == source[index]["label"]
        assert theirs[index]["id"].decode() == source[index]["id"]


def test_small_images_stay_in_memory(small_set):
    data_dir, images = small_set
    for name in ("digits", "digits:1.0.0"):
        source = open_source({"name": name, "data_dir": str(data_dir)}, "train[:50%]+test")
        assert np.array_equal(source.images, images[[0, 1, 2, 3, 8, 9]])
        assert source.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_photographs_are_decoded_when_asked_for(image_folder, tmp_path):
    root = image_folder()
    out, bad = prepare_files(str(root), str(tmp_path / "prepared"))
    assert not bad
    folder, prepared = open_source({"name": str(root)}, "train"), open_source({"name": out}, "train")
    assert len(prepared) == len(folder) and prepared.class_names == folder.class_names
    for index in range(len(folder)):
        assert np.array_equal(prepared[index]["image"], folder[index]["image"])
        assert prepared[index]["label"] == folder[index]["label"]
        assert folder[index]["id"].endswith(prepared[index]["id"])


def test_what_is_prepared_opens_in_tensorflow_datasets(small_set):
    import tensorflow_datasets as tfds

    data_dir, images = small_set
    source = tfds.builder_from_directory(str(data_dir / "digits" / "1.0.0")).as_data_source("test")
    assert np.array_equal(source[1]["image"], images[9]) and source[1]["label"] == 1


def test_many_shards_keep_the_order(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "d.npz", image=images, label=np.arange(11))
    monkeypatch.setattr("effnet_jax.data.prepare.SHARD_BYTES", 600)
    out, _ = prepare_files(str(tmp_path / "d.npz"), str(tmp_path / "out"))
    assert len([name for name in os.listdir(f"{out}/1.0.0") if "array_record" in name]) > 3
    assert np.array_equal(open_source({"name": out}, "train").images, images)
    assert np.array_equal(open_source({"name": out}, "train[30%:80%]").images, images[3:9])


def test_data_dir_without_the_set_says_how_to_prepare_it(small_set):
    data_dir, _ = small_set
    with pytest.raises(
        DataError, match=r"does not hold the set 'digitz'.*effnet_jax.prepare digitz.*did you mean 'digits'"
    ):
        open_source({"name": "digitz", "data_dir": str(data_dir)}, "train")
    with pytest.raises(DataError, match="does not hold the set 'digits:2.0.0'"):
        open_source({"name": "digits:2.0.0", "data_dir": str(data_dir)}, "train")
    with pytest.raises(DataError, match="does not hold the set 'digits'"):
        open_source({"name": "digits", "data_dir": str(data_dir / "nowhere")}, "train")


def test_the_default_data_dir_can_be_set(small_set, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(small_set[0]))
    assert len(open_source({"name": "digits"}, "test")) == 2


def test_the_newest_version_is_taken_and_configurations_are_asked_for(small_set):
    data_dir, _ = small_set
    for version in ("1.9.0", "1.10.0"):
        os.symlink(data_dir / "digits" / "1.0.0", data_dir / "digits" / version)
    from effnet_jax.data.sources.prepared import find_prepared

    assert find_prepared("digits", str(data_dir)).endswith("digits/1.10.0")
    os.makedirs(data_dir / "pets")
    for config in ("cats", "dogs"):
        os.symlink(data_dir / "digits", data_dir / "pets" / config)
    with pytest.raises(DataError, match="several configurations: name one of pets/cats, pets/dogs"):
        open_source({"name": "pets", "data_dir": str(data_dir)}, "train")
    assert len(open_source({"name": "pets/dogs:1.0.0", "data_dir": str(data_dir)}, "train")) == 8


def edit_info(data_dir, **changes):
    path = data_dir / "digits" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_set_prepared_as_tfrecord(small_set):
    data_dir, _ = small_set
    edit_info(data_dir, fileFormat="tfrecord")
    with pytest.raises(DataError, match="prepared as tfrecord.*Prepare it as array_record"):
        open_source({"name": "digits", "data_dir": str(data_dir)}, "train")


def test_missing_and_damaged_files(small_set):
    data_dir, _ = small_set
    folder = data_dir / "digits" / "1.0.0"
    with pytest.raises(DataError, match="no split 'validation'"):
        open_source({"name": "digits", "data_dir": str(data_dir)}, "validation")
    path = folder / "digits-train.array_record-00000-of-00001"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be read|is damaged"):
        open_source({"name": "digits", "data_dir": str(data_dir)}, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"digits-train.* is missing"):
        open_source({"name": "digits", "data_dir": str(data_dir)}, "train")
    (folder / "features.json").write_text("{")
    with pytest.raises(DataError, match="no set of tensorflow-datasets"):
        open_source({"name": "digits", "data_dir": str(data_dir)}, "test")


def rewrite(data_dir, change):
    """Writes the training records again, each `tf.train.Example` changed by `change(position, feature)`."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    path = str(data_dir / "digits" / "1.0.0" / "digits-train.array_record-00000-of-00001")
    reader = array_record_module.ArrayRecordReader(path)
    examples = [tf_example_pb2.Example.FromString(record) for record in reader.read(list(range(reader.num_records())))]
    reader.close()
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for position, example in enumerate(examples):
        change(position, example.features.feature)
        writer.write(example.SerializeToString())
    writer.close()


def test_a_damaged_image_among_small_ones(small_set):
    data_dir, images = small_set

    def damage(position, feature):
        if position == 3:
            feature["image"].bytes_list.value[0] = feature["image"].bytes_list.value[0][:60]

    rewrite(data_dir, damage)
    data = {"name": "digits", "data_dir": str(data_dir)}
    with pytest.raises(DataError, match=r"train/3 is a damaged or truncated image"):
        open_source(data, "train")
    source = open_source(data | {"on_bad_image": "skip"}, "train")
    assert np.array_equal(source.images, np.delete(images[:8], 3, axis=0))
    assert source.labels.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert [entry["id"] for entry in source.left_out] == [f"{data_dir.parent / 'digits.npz'} train/3"]


def test_a_label_out_of_range(small_set):
    data_dir, _ = small_set

    def mislabel(position, feature):
        feature["label"].int64_list.value[0] = 7 if position == 5 else 0

    rewrite(data_dir, mislabel)
    with pytest.raises(DataError, match=r"1 label\(s\) are outside 0\.\.1, the first at position 5: 7"):
        open_source({"name": "digits", "data_dir": str(data_dir)}, "train")


def test_a_set_without_images(small_set):
    data_dir, _ = small_set
    edit_info(data_dir, supervisedKeys={"tuple": {"items": [{"featureKey": "id"}, {"featureKey": "label"}]}})
    with pytest.raises(DataError, match="needs an image and a class label"):
        open_source({"name": "digits", "data_dir": str(data_dir)}, "train")


def test_damaged_images_are_named_or_left_out(image_folder, tmp_path):
    root = image_folder()
    (root / "train" / "dog" / "001.jpg").write_bytes(b"\xff\xd8 not much of a JPEG")
    with pytest.raises(DataError, match=r"001\.jpg is a damaged"):
        prepare_files(str(root), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["images"]  # nothing half-written
    out, bad = prepare_files(str(root), str(tmp_path / "out"), on_bad_image="skip")
    assert len(bad) == 1 and bad[0]["id"].endswith("train/dog/001.jpg")
    assert len(open_source({"name": out}, "train")) == 7


def test_an_output_that_exists_is_left_alone(small_set, tmp_path):
    with pytest.raises(DataError, match="exists: choose another folder"):
        prepare_files(str(tmp_path / "digits.npz"), str(small_set[0] / "digits"))


def test_what_cannot_be_read_is_left_out(image_folder, tmp_path):
    root = image_folder()
    (root / "train" / "cat" / "deep").mkdir()
    (root / "train" / "cat" / "000.jpg").rename(root / "train" / "cat" / "deep" / "000.jpg")
    (root / "train" / "dog" / "000.jpg").unlink()
    (root / "train" / "dog" / "000.jpg").symlink_to("/proc/self/mem")  # reading it is EIO, to root too
    with pytest.raises(DataError, match=r"dog/000\.jpg cannot be read: Input/output error"):
        prepare_files(str(root), str(tmp_path / "out"))
    assert not [name for name in os.listdir(tmp_path) if "out" in name]
    out, bad = prepare_files(str(root), str(tmp_path / "out"), on_bad_image="skip")
    assert [entry["id"] for entry in bad] == [str(root / "train" / "dog" / "000.jpg")]
    source = open_source({"name": out}, "train")
    assert len(source) == 7 and "train/cat/deep/000.jpg" in [source[index]["id"] for index in range(7)]


def test_splits_can_be_chosen(image_folder, tmp_path):
    root = image_folder()
    shutil.rmtree(root / "test", ignore_errors=True)
    (root / "test").mkdir()
    (root / "train" / "cat" / "000.jpg").rename(root / "test" / "1.jpg")
    with pytest.raises(DataError, match="labels are unknown"):
        prepare_files(str(root), str(tmp_path / "out"))
    out, _ = prepare_files(str(root), str(tmp_path / "out"), splits=["train", "validation"])
    assert len(open_source({"name": out}, "train+validation")) == 11


def test_what_a_set_of_small_images_left_out_is_told(small_set, tmp_path):
    def truncate(position, feature):
        if position == 3:
            feature["image"].bytes_list.value[0] = feature["image"].bytes_list.value[0][:40]

    rewrite(small_set[0], truncate)
    _, bad = prepare_files(str(small_set[0] / "digits"), str(tmp_path / "again"), on_bad_image="skip")
    assert len(bad) == 1 and "train/3" in bad[0]["error"]


@pytest.mark.parametrize("names", [["a\nb", "c"], [" ", "a"], ["a ", "b"], ["a", "a"]])
def test_class_names_that_the_format_would_change(tmp_path, names):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "d.npz", image=images, label=np.arange(2), class_names=np.array(names))
    with pytest.raises(DataError, match="which the format cannot hold"):
        prepare_files(str(tmp_path / "d.npz"), str(tmp_path / "out"))


def test_large_arrays_become_smaller(tmp_path):
    np.savez(tmp_path / "d.npz", image=np.zeros((2, 400, 300, 3), np.uint8), label=np.arange(2))
    out, _ = prepare_files(str(tmp_path / "d.npz"), str(tmp_path / "out"), short_side=128)
    assert open_source({"name": out}, "train")[0]["image"].shape == (171, 128, 3)


def test_a_folder_of_classes_is_hardly_looked_at(image_folder, monkeypatch):
    """To tell that it is no prepared set: a million files must not be listed, nor one folder end it all."""
    root = image_folder(per_class={"train": 60}, vary=False)
    (root / "train").rename(root.parent / "flat")
    looked, scandir = [], os.scandir

    def counted(path):
        if os.path.basename(path) == "dog":
            raise PermissionError(13, "Permission denied")
        looked.append(0)
        with scandir(path) as entries:
            for entry in entries:
                looked[-1] += 1
                yield entry

    monkeypatch.setattr(os, "scandir", counted)
    assert prepared_below(root.parent / "flat") == []
    assert max(looked) < 30


def test_large_photographs_become_smaller(tmp_path):
    random = np.random.default_rng(0)
    for label, (width, height) in {"a": (900, 600), "b": (300, 200)}.items():
        (tmp_path / "photos" / "train" / label).mkdir(parents=True)
        small = Image.fromarray(random.integers(0, 256, (6, 9, 3), np.uint8))
        photograph = small.resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 6  # held upright
        photograph.save(tmp_path / "photos" / "train" / label / "1.jpg", quality=95, exif=exif)
    out, _ = prepare_files(str(tmp_path / "photos"), str(tmp_path / "out"), short_side=320)
    large, small = open_source({"name": str(tmp_path / "photos")}, "train"), open_source({"name": out}, "train")
    shapes = {}
    for index in range(2):
        assert small[index]["label"] == large[index]["label"]
        shapes[small.class_names[small[index]["label"]]] = small[index]["image"].shape
        squares = [training_square(source.encoded(index)[0], 256)[0] for source in (large, small)]
        assert np.abs(squares[0].astype(int) - squares[1]).mean() < 2  # levels of 255
    assert shapes == {"a": (480, 320, 3), "b": (300, 200, 3)}
    assert small.encoded(1 if small[1]["label"] else 0)[0] == large.encoded(1 if large[1]["label"] else 0)[0]


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_preparing_by_name_needs_tensorflow():
    with pytest.raises(DataError, match=r"'mnist' needs TensorFlow and a network.*effnet-jax\[tensorflow\]"):
        prepare_named("mnist")


def test_the_command(image_folder, tmp_path):
    root = image_folder()
    command = [sys.executable, "-m", "effnet_jax.prepare", str(root), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"data.name={tmp_path / 'out'}" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and "exists: choose another folder" in again.stderr
    assert "Traceback" not in again.stderr


def test_what_is_no_data_set(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"x")
    with pytest.raises(DataError, match=r"photos\.zip is neither a folder, an \.npz nor a CIFAR archive: unpack it"):
        open_source({"name": str(tmp_path / "photos.zip")}, "train")
    with pytest.raises(DataError, match="no such file or folder"):
        open_source({"name": str(tmp_path / "nowhere")}, "train")
    with pytest.raises(DataError, match=r"data\.name is empty"):
        open_source({"name": ""}, "train")
    with pytest.raises(ConfigError, match="'skp': did you mean 'skip'"):
        open_source({"name": "x", "on_bad_image": "skp"}, "train")
