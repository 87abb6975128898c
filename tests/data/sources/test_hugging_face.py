"""Sets of Hugging Face's `datasets`: saved folders, parquet files, and what is said of other tables."""

import pickle
import subprocess
import sys

import numpy as np
import pyarrow
import pytest

from effnet_jax.data.loader import train_batches
from effnet_jax.data.prepare import prepare_files
from effnet_jax.data.sources import open_dataset, open_source
from effnet_jax.data.sources.hugging_face import ArrowRecords
from effnet_jax.errors import DataError

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def no_network_and_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def table(image_folder):
    """A table of the images of a folder, and the folder's own source."""
    source = open_source({"name": str(image_folder(vary=False))}, "train")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(source.class_names)))
    reads = source.read_many(np.arange(len(source)))
    columns = {"image": [{"bytes": data, "path": name} for data, _, name in reads], "label": [r[1] for r in reads]}
    return datasets.Dataset.from_dict(columns, features=features), source


def saved(tmp_path, kind, tables):
    root = tmp_path / kind
    if kind == "save_to_disk":
        datasets.DatasetDict(tables).save_to_disk(root)
        return str(root)
    (root / "data").mkdir(parents=True)
    for split, table in tables.items():
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return str(root)


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet"])
def test_images_labels_and_names_are_those_of_the_set(tmp_path, table, kind):
    table, source = table
    order = [5, 0, 7, 2, 3, 1, 4, 6]
    name = saved(tmp_path, kind, {"train": table.select(order), "valid": table.select([1, 6])})
    dataset = open_dataset({"name": name}, ["train", "validation"])
    assert dict(dataset.sizes) == {"train": 8, "validation": 2} and dataset.class_names == source.class_names
    theirs = dataset.split("train[2:]+validation")
    assert theirs.labels.tolist() == source.labels[[*order[2:], 1, 6]].tolist() and theirs.fixed_shape == (40, 48, 3)
    for index, place in enumerate([*order[2:], 1, 6]):
        assert np.array_equal(theirs[index]["image"], source[place]["image"])


def photographs(source):
    """A table of photographs, which are of different sizes."""
    images = [np.repeat(np.repeat(source[i]["image"], 3 + i % 2, axis=0), 3, axis=1) for i in range(len(source))]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(source.class_names)))
    return datasets.Dataset.from_dict({"image": images, "label": source.labels.tolist()}, features=features)


def test_photographs_by_threads_and_workers(tmp_path, table):
    photos = photographs(table[1])
    name = saved(tmp_path, "save_to_disk", {"train": photos})
    source = open_source({"name": name}, "train")
    assert source.fixed_shape is None and len(pickle.dumps(source.records)) < 1000
    batches = [train_batches(source, batch_size=8, seed=0, workers=workers, size=32) for workers in (0, 1)]
    for mine, theirs in zip(*(next(each).items() for each in batches), strict=True):
        assert np.array_equal(mine[1], theirs[1])
    for each in batches:
        each.close()
    out, bad = prepare_files(name, str(tmp_path / "prepared"))
    assert not bad and np.array_equal(open_source({"name": out}, "train")[3]["image"], source[3]["image"])


def test_a_worker_needs_pyarrow_alone(tmp_path, table):
    name = saved(tmp_path, "save_to_disk", {"train": photographs(table[1])})
    code = (
        "import pickle, sys; import numpy as np; records = pickle.load(open(sys.argv[1], 'rb'));"
        "assert len(records.read_many(np.arange(3))[2][0]) > 100;"
        "assert not {'datasets', 'pandas', 'jax', 'tensorflow_datasets'} & set(sys.modules)"
    )
    (tmp_path / "records").write_bytes(pickle.dumps(open_source({"name": name}, "train").records))
    subprocess.run([sys.executable, "-c", code, tmp_path / "records"], check=True)


@pytest.mark.parametrize(
    ("values", "names"), [(["b", "a"], ("a", "b")), ([1, 0], ("0", "1")), ([3, 1], ("0", "1", "2", "3"))]
)
def test_labels_that_are_texts_or_numbers(tmp_path, table, values, names):
    labels = [values[i % 2] for i in range(8)]
    plain = table[0].remove_columns("label").add_column("label", labels)
    dataset = open_dataset({"name": saved(tmp_path, "parquet", {"train": plain})}, ["train"])
    source = dataset.split("train")
    assert dataset.class_names == names
    assert [names[source[i]["label"]] for i in range(8)] == [str(label) for label in labels]


def twice(table, first, second):
    """The table with its images in two columns."""
    images = list(table.cast_column("image", datasets.Image(decode=False))["image"])
    features = datasets.Features({first: datasets.Image(), second: datasets.Image(), "label": table.features["label"]})
    columns = {first: images, second: images, "label": list(table["label"])}
    return datasets.Dataset.from_dict(columns, features=features)


def with_labels(table, labels):
    return {"train": table.remove_columns("label").add_column("label", labels)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"train": t.rename_column("image", "x")}, None),  # the only images that there are
        (lambda t: {"train": t.remove_columns("label")}, r"has the columns image \(.*which of them holds the labels"),
        (lambda t: {"train": t.remove_columns("image")}, r"which of them holds the images"),
        (lambda t: with_labels(t, [0.5, 1.0] * 4), "have fractions"),
        (lambda t: with_labels(t, [float("nan"), 1.0] * 4), r"4 label\(s\) are no numbers"),
        (lambda t: with_labels(t, ["a", None] * 4), r"4 image\(s\) have no label"),
        (lambda t: with_labels(t, [-1] * 8), r"has no labels \(all are -1\)"),
        (lambda t: with_labels(t, [0, 2_000_000] * 4), "2,000,001 classes"),
        (lambda t: {"train": t, "test": t.rename_column("label", "y")}, "columns of test are not those"),
        (lambda t: {"train": twice(t, "x", "y")}, "holds the images"),
    ],
)
def test_tables_of_another_schema(tmp_path, table, change, message):
    name = saved(tmp_path, "save_to_disk", change(table[0]))
    if message is None:
        assert len(open_source({"name": name}, "train")) == 8
        return
    with pytest.raises(DataError, match=message):
        open_dataset({"name": name}, ["all"]).split("train")


def test_a_column_of_the_usual_name_comes_before_others_of_the_type(tmp_path, table):
    """A camera is a class too, and a mask an image."""
    words = table[0].remove_columns("label").add_column("label", ["cat", "dog"] * 4)
    words = words.add_column("camera", [0, 1] * 4).cast_column("camera", datasets.ClassLabel(names=["nikon", "canon"]))
    masked = twice(table[0], "image", "mask").remove_columns("label")
    words = datasets.concatenate_datasets([masked, words.remove_columns("image")], axis=1)
    dataset = open_dataset({"name": saved(tmp_path, "save_to_disk", {"train": words})}, ["train"])
    assert dataset.class_names == ("cat", "dog")
    assert dataset.notes == ("images are taken from the column 'image', labels from 'label'",)


def test_splits_that_nobody_asks_for_may_be_as_they_like(tmp_path, table):
    tables = {"train": table[0], "test": table[0].remove_columns("label")}
    dataset = open_dataset({"name": saved(tmp_path, "save_to_disk", tables)}, ["train"])
    assert dict(dataset.sizes) == {"train": 8}
    with pytest.raises(DataError, match=r"it has .*test.*|no split"):
        dataset.split("tset")


def test_a_table_beside_folders_of_classes_changes_nothing(tmp_path, table):
    root = tmp_path / "images"
    before = open_dataset({"name": str(root)}, ["train"]).split("train").labels
    table[0].to_parquet(root / "embeddings.parquet")
    assert np.array_equal(open_dataset({"name": str(root)}, ["train"]).split("train").labels, before)


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("part-0.parquet", "part-1.parquet"), {"train": 16}),
        (("train-00000-of-00001.parquet", "valid.parquet"), {"train": 8, "valid": 8}),
    ],
)
def test_files_by_their_names(tmp_path, table, names, sizes):
    for name in names:
        table[0].to_parquet(tmp_path / "set" / name)
    assert dict(open_dataset({"name": str(tmp_path / "set")}, ["all"]).sizes) == sizes


def test_one_odd_image_among_many_small_ones_makes_photographs(tmp_path):
    images = [np.full((32, 31 if i == 70 else 32, 3), i, np.uint8) for i in range(200)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    odd = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 100}, features=features)
    source = open_source({"name": saved(tmp_path, "save_to_disk", {"train": odd})}, "train")
    assert source.fixed_shape is None and source[70]["image"].shape == (32, 31, 3)


def test_an_image_that_is_missing_or_damaged_is_told_or_skipped(tmp_path, table):
    images = [data for data, *_ in table[1].read_many(np.arange(8))]
    rows = [{"bytes": data, "path": None} for data in images]
    rows[3] = {"bytes": images[3][:100], "path": None}
    rows[4] = None
    damaged = datasets.Dataset.from_dict({"image": rows, "label": table[0]["label"]}, features=table[0].features)
    name = saved(tmp_path, "save_to_disk", {"train": damaged})
    with pytest.raises(DataError, match=r"train/3 is a damaged or truncated JPEG"):
        open_source({"name": name}, "train")
    source = open_source({"name": name, "on_bad_image": "skip"}, "train")
    assert len(source) == 6 and source.left_out[1]["error"].endswith("train/4 has no image: leave it out of the set")


def test_images_that_are_files_beside_the_table(tmp_path, image_folder):
    """As the hub's sets of loose image files are kept."""
    path = next(image_folder().glob("train/cat/*.jpg"))
    table = pyarrow.table({"image": [{"bytes": None, "path": str(path)}], "label": [1]})
    with pyarrow.ipc.new_stream(tmp_path / "set.arrow", table.schema) as file:
        file.write_table(table)
    records = ArrowRecords("set", (str(tmp_path / "set.arrow"),), range(1), "image", "label")
    assert records.read_many(np.array([0])) == [(path.read_bytes(), 1, str(path))]
    path.unlink()
    (error,) = records.read_many(np.array([0]))
    assert isinstance(error, DataError) and "cannot be read: No such file" in str(error)


def test_a_hub_id_without_a_network_says_what_to_do():
    with pytest.raises(DataError, match=r"hf://me/set could not be fetched .* `hf download me/set --repo-type=dataset"):
        open_dataset({"name": "hf://me/set"}, ["train"])
    with pytest.raises(DataError, match="write hf://user/name"):
        open_dataset({"name": "hf://a b"}, ["train"])


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'effnet-jax\[hf\]'"):
        open_dataset({"name": "hf://me/set"}, ["train"])


def fuzz(tmp_path, table, count):
    """Opens damaged parquet files; returns how many were read in full, each with the pixels that it had."""
    path = tmp_path / "set.parquet"
    table.to_parquet(path)
    original, random, read = path.read_bytes(), np.random.default_rng(0), 0
    expected = open_source({"name": str(path)}, "train")
    for number in range(count):
        data = bytearray(original)
        for place in random.integers(0, len(data), random.integers(1, 5)):
            data[place] = random.integers(256)
        if number % 5 == 0:
            data = data[: random.integers(len(data))]
        path.unlink()
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(data)
        try:
            source = open_dataset({"name": str(path)}, ["train"]).split("train")
        except DataError:
            continue
        read += 1
        assert np.array_equal(source.labels, expected.labels)
        # A changed byte within a JPEG's coded data gives other pixels, one in its header may give another size.
        assert sum(differs(source, expected, index) for index in range(len(expected))) <= 4
    return read


def differs(source, expected, index):
    """Whether an image is read, and is another."""
    try:
        return not np.array_equal(source[index]["image"], expected[index]["image"])
    except DataError:
        return False


def test_damaged_parquet_is_an_error_or_read_as_it_was(tmp_path, table):
    assert fuzz(tmp_path, table[0], 30) < 30


@pytest.mark.slow
def test_a_thousand_damaged_parquet_files(tmp_path, table):
    assert 0 < fuzz(tmp_path, table[0], 1000) < 1000
