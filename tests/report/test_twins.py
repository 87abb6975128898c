"""Images that are there with two labels."""

import shutil

import numpy as np
from PIL import Image

from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.arrays import from_arrays
from effnet_jax.report.twins import find_twins

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)


def told(twins):
    return [
        ((pair.first.split, pair.first.index, pair.first.label),
         (pair.second.split, pair.second.index, pair.second.label), pair.equal)
        for pair in twins.pairs
    ]  # fmt: skip


def source(indices, labels):
    return from_arrays(IMAGES[list(indices)], np.array(labels), ("a", "b", "c"))


def test_equal_arrays_within_a_split_and_across():
    sources = {"train": source((0, 1, 0, 2), (0, 1, 2, 2)), "test": source((1, 2, 3), (0, 2, 1))}
    # Image 2 is in both splits with one label.
    assert told(find_twins(sources)) == [
        (("train", 0, "a"), ("train", 2, "c"), True),
        (("train", 1, "b"), ("test", 0, "a"), True),
    ]


def photograph(seed):
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((300, 240), Image.Resampling.BICUBIC)


def test_files_that_were_compressed_anew_and_what_only_lies_before_the_same_wall(image_folder):
    root = image_folder()
    shutil.copy(root / "train" / "dog" / "002.jpg", root / "test" / "cat" / "again.jpg")
    photograph(1).save(root / "train" / "cat" / "x.jpg", quality=95)
    photograph(1).resize((150, 120)).save(root / "test" / "dog" / "smaller.jpg", quality=60)
    wall = np.tile(np.linspace(60, 200, 240, dtype=np.uint8)[None, :, None], (240, 1, 3))
    for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 90))):
        pixels = wall.copy()
        pixels[80:150, 80:150] = colour
        Image.fromarray(pixels).save(root / "train" / name / "wall.png")
    sources = {role: open_source({"name": str(root)}, role) for role in ("train", "validation", "test")}
    found = {
        tuple(sources[one.split].example_id(one.index).rpartition("/")[2] for one in (pair.first, pair.second)): pair
        for pair in find_twins(sources).pairs
    }
    assert set(found) == {("002.jpg", "again.jpg"), ("x.jpg", "smaller.jpg")}
    assert found["002.jpg", "again.jpg"].equal and not found["x.jpg", "smaller.jpg"].equal


def test_a_search_that_would_take_too_long_says_so(image_folder):
    root = image_folder()
    sources = {"train": open_source({"name": str(root)}, "train")}
    twins = find_twins(sources, seconds=-1)
    assert twins.pairs == () and len(twins.notes) == 2 and all("more than" in note for note in twins.notes)


def test_an_image_that_cannot_be_read_is_like_no_other(image_folder):
    root = image_folder()
    for name in ("cat", "dog"):
        (root / "train" / name / "000.jpg").write_bytes(b"no image")
    sources = {"train": open_source({"name": str(root), "on_bad_image": "skip"}, "train")}
    assert [pair.equal for pair in find_twins(sources).pairs] == [True]  # equal bytes are what they are
