"""The table of a folder's images: kept for the next time, shared by workers, and told from one that is out of date."""

import os
import pickle
import shutil
import time

import numpy as np
import pytest

from effnet_jax.data.sources import table
from effnet_jax.data.sources.folder import open_folder
from effnet_jax.errors import DataError

OLD = time.time() - 3600


@pytest.fixture
def kept(tmp_path, monkeypatch, image_folder):
    """A small folder that was changed long ago, whose listings are kept as those of large ones are."""
    monkeypatch.delenv("EFFNET_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "_WORTH_KEEPING", 1)
    root = image_folder()
    for folder, _, _ in os.walk(root):
        os.utime(folder, (OLD, OLD))
    return root


def listed(root, monkeypatch):
    """Opens the folder. Returns the data set, and how many folders were listed for it."""
    count, scandir = 0, os.scandir

    def counted(path):
        nonlocal count
        count += 1
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", counted)
        return open_folder(str(root), ["train", "validation"]), count


def contents(dataset):
    source = dataset.split("train+validation")
    return [(read[0], read[1], read[2]) for read in source.read_many(np.arange(len(source)))]


def test_a_second_start_lists_nothing(kept, monkeypatch):
    first, count = listed(kept, monkeypatch)
    assert count > 5
    again, count = listed(kept, monkeypatch)
    assert count == 0
    assert contents(again) == contents(first) and (again.sizes, again.notes) == (first.sizes, first.notes)


def test_a_worker_gets_the_place_and_not_the_names(kept, monkeypatch):
    source = listed(kept, monkeypatch)[0].split("train")
    pickled = pickle.dumps(source.records)
    assert len(pickled) < 400 and b"000.jpg" not in pickled
    assert pickle.loads(pickled).read_many(np.arange(8)) == source.read_many(np.arange(8))


@pytest.mark.parametrize("change", ["added", "removed", "a class added", "moved"])
def test_a_folder_that_changed_is_listed_again(kept, monkeypatch, change):
    listed(kept, monkeypatch)
    if change == "added":
        shutil.copy(kept / "train" / "cat" / "000.jpg", kept / "train" / "dog" / "new.jpg")
    if change == "removed":
        (kept / "train" / "cat" / "000.jpg").unlink()
    if change == "a class added":
        shutil.copytree(kept / "train" / "cat", kept / "train" / "eel")
    if change == "moved":
        (kept / "train" / "cat" / "000.jpg").rename(kept / "validation" / "cat" / "moved.jpg")
    dataset, count = listed(kept, monkeypatch)
    assert count > 5
    sizes = {"added": (9, 4), "removed": (7, 4), "a class added": (12, 4), "moved": (7, 5)}[change]
    assert tuple(dataset.sizes.values()) == sizes


def test_a_table_of_labels_that_changed_is_read_again(kept, monkeypatch):
    lines = ["path,label", *(f"{path.relative_to(kept)},{path.stem}" for path in sorted(kept.glob("train/cat/*.jpg")))]
    flat = kept / "train" / "cat"
    labels = flat / "labels.csv"
    for swapped in (False, True):
        named = [line.replace("train/cat/", "") for line in (lines if not swapped else [lines[0], *lines[2:]])]
        labels.write_text("\n".join(named))
        os.utime(labels, (OLD + swapped, OLD + swapped))
        os.utime(flat, (OLD, OLD))  # writing to a file does not change its folder
        assert len(open_folder(str(flat), ["all"]).class_names) == len(named) - 1


def test_what_was_skipped_is_an_error_for_a_run_that_skips_nothing(kept, monkeypatch):
    flat = kept / "train" / "cat"
    (flat / "labels.csv").write_text("path,label\n000.jpg,a\n001.jpg,b\nmissing.jpg,a\n")
    for path in (flat, flat / "labels.csv"):
        os.utime(path, (OLD, OLD))
    open_folder(str(flat), ["all"], on_bad_image="skip")
    with pytest.raises(DataError, match=r"names images that are not below .*missing\.jpg"):
        open_folder(str(flat), ["all"])


def test_a_folder_that_was_changed_a_moment_ago_is_not_trusted(kept, monkeypatch):
    os.utime(kept / "train" / "cat")  # what comes now may have the same time
    listed(kept, monkeypatch)
    assert listed(kept, monkeypatch)[1] > 5


@pytest.mark.parametrize("name", ["about.json", "names.npy"])
def test_a_damaged_listing_is_as_good_as_none(kept, monkeypatch, tmp_path, name):
    first = contents(listed(kept, monkeypatch)[0])
    (path,) = (tmp_path / "cache").rglob(name)
    path.write_bytes(path.read_bytes()[:40])
    assert contents(listed(kept, monkeypatch)[0]) == first


def test_a_newer_listing_takes_nothing_from_a_run_that_goes_on(kept, monkeypatch, tmp_path):
    """Workers may be started hours after a folder was listed: it may have changed, and another run have come."""
    source = listed(kept, monkeypatch)[0].split("train")
    expected = source.read_many(np.arange(8))
    early = pickle.dumps(source.records)  # on its way to a worker
    shutil.copy(kept / "train" / "cat" / "000.jpg", kept / "train" / "dog" / "new.jpg")
    assert len(listed(kept, monkeypatch)[0].split("train")) == 9
    assert pickle.loads(pickle.dumps(source.records)).read_many(np.arange(8)) == expected
    with pytest.raises(FileNotFoundError):
        pickle.loads(early)
    shutil.rmtree(tmp_path / "cache")
    assert pickle.loads(pickle.dumps(source.records)).read_many(np.arange(8)) == expected


def test_a_listing_with_broken_links_is_made_again(kept, monkeypatch, tmp_path):
    (kept / "train" / "emu").symlink_to(tmp_path / "not mounted")
    os.utime(kept / "train", (OLD, OLD))
    assert len(listed(kept, monkeypatch)[0].split("train")) == 8
    shutil.copytree(kept / "train" / "cat", tmp_path / "not mounted")
    assert len(listed(kept, monkeypatch)[0].split("train")) == 12


def test_no_room_for_it_is_no_reason_to_fail(kept, monkeypatch, tmp_path):
    (tmp_path / "cache").write_bytes(b"in the way")
    assert contents(listed(kept, monkeypatch)[0])


def test_a_small_folder_leaves_nothing_behind(image_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("EFFNET_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_folder(str(image_folder()), ["train"]).split("train")
    assert not (tmp_path / "cache").exists()
    assert pickle.loads(pickle.dumps(source)).read_many(np.arange(8)) == source.read_many(np.arange(8))
