"""Batches are a pure function of (seed, step), whoever makes them; evaluation sees every example once."""

import itertools

import numpy as np
import pytest

from effnet_jax.data.loader import (
    eval_batches,
    evaluation_steps,
    prefetch,
    square_size,
    train_batches,
)
from effnet_jax.data.order import BalancedOrder, step_indices
from effnet_jax.data.preprocess import evaluation_image, training_square
from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.arrays import from_arrays
from effnet_jax.data.squares import SquareCache
from effnet_jax.errors import ConfigError, DataError


def small(count=23):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return from_arrays(images, np.arange(count) % 5, name="small")


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    if hasattr(batches, "close"):
        batches.close()
    return taken


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]), key


def test_each_epoch_shows_every_example_once_though_steps_do_not_divide_it():
    shown = np.concatenate([step_indices(step, batch_size=6, seed=3, count=23) for step in range(23)])
    epochs = shown.reshape(6, 23)
    for epoch in epochs:
        assert sorted(epoch) == list(range(23))
    assert len({tuple(epoch) for epoch in epochs}) == 6  # shuffled anew


def test_the_order_is_pinned():
    # A run that is resumed under a later NumPy must go on with the same examples.
    assert step_indices(0, batch_size=8, seed=0, count=1000).tolist() == [998, 162, 670, 664, 185, 322, 431, 318]
    assert step_indices(125, batch_size=4, seed=7, count=100).tolist() == [47, 81, 78, 37]


def test_other_seeds_give_other_orders():
    orders = {tuple(step_indices(0, batch_size=23, seed=seed, count=23)) for seed in range(20)}
    assert len(orders) == 20


def test_a_batch_larger_than_the_source_wraps_around():
    batch = step_indices(0, batch_size=10, seed=0, count=4)
    assert sorted(batch[:4]) == sorted(batch[4:8]) == [0, 1, 2, 3]


def test_small_batches_hold_what_their_index_says():
    source = small()
    for batch in take(train_batches(source, batch_size=6, seed=1), 5):
        assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
            "image": ("uint8", (6, 8, 8, 3)),
            "aspect": ("float32", (6,)),
            "label": ("int32", (6,)),
            "index": ("int32", (6,)),
            "epoch": ("int32", (6,)),
        }
        assert np.array_equal(batch["image"], source.images[batch["index"]])
        assert np.array_equal(batch["label"], source.labels[batch["index"]])
        assert np.all(batch["aspect"] == 1)


def test_photographs_are_squeezed_whole(image_folder):
    source = open_source({"name": str(image_folder())}, "train")
    (batch,) = take(train_batches(source, batch_size=4, seed=1, size=32), 1)
    assert batch["image"].shape == (4, 32, 32, 3)
    for row, index in enumerate(batch["index"]):
        square, aspect = training_square(source[index]["image"], 32)
        assert np.array_equal(batch["image"][row], square)
        assert batch["aspect"][row] == np.float32(aspect)
        assert batch["label"][row] == source.labels[index]
    assert len(set(batch["aspect"])) > 1


@pytest.mark.parametrize("kind", ["small", "photographs"])
def test_resume_gives_the_very_next_batch_at_each_of_50_positions(kind, image_folder):
    source = small() if kind == "small" else open_source({"name": str(image_folder())}, "train")
    options = {"batch_size": 3, "seed": 5, "size": 16}
    whole = take(train_batches(source, **options), 52)
    for start in range(50):
        assert_equal(take(train_batches(source, start_step=start, **options), 2), whole[start : start + 2])


# The rows that two processes of two devices each hold: side by side, and as a torus may order them.
@pytest.mark.parametrize("shares", [([0, 1, 2, 3], [4, 5, 6, 7]), ([0, 1, 6, 7], [2, 3, 4, 5])])
def test_processes_share_the_global_batch_by_their_rows(shares):
    source = small()
    whole = take(train_batches(source, batch_size=8, seed=5), 6)
    for rows in shares:
        part = take(train_batches(source, batch_size=8, seed=5, rows=np.array(rows)), 6)
        assert_equal(part, [{key: value[rows] for key, value in batch.items()} for batch in whole])


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_hosts_may_shuffle_parts_of_their_own(parts, image_folder):
    source, seen = small(23), []
    for number in range(parts):
        own = len(range(number, 23, parts))
        batches = take(train_batches(source, batch_size=6, seed=5, rows=np.arange(2), part=(number, parts)), own)
        shown = np.concatenate([batch["index"] for batch in batches]).reshape(2, own)  # two epochs of the part
        assert sorted(shown[0]) == sorted(shown[1]) == list(range(number, 23, parts))
        assert shown[0].tolist() != shown[1].tolist()
        assert np.concatenate([batch["epoch"] for batch in batches]).tolist() == [0] * own + [1] * own
        (again,) = take(
            train_batches(source, batch_size=6, seed=5, start_step=5, rows=np.arange(2), part=(number, parts)), 1
        )
        assert_equal([again], [batches[5]])
        seen.append(set(shown[0].tolist()))
    assert set.union(*seen) == set(range(23)) and sum(map(len, seen)) == 23
    # Each decodes and keeps what it shows, and no more.
    source = open_source({"name": str(image_folder())}, "train")
    plain = take(train_batches(source, batch_size=6, seed=5, size=16, rows=np.arange(3), part=(0, parts)), 8)
    cache = SquareCache(1)
    options = {"batch_size": 6, "seed": 5, "size": 16, "rows": np.arange(3), "part": (0, parts), "squares": cache}
    assert_equal(take(train_batches(source, **options), 8), plain)
    assert len(cache.of(source, 16, (0, parts)).image) == len(range(0, 8, parts))
    assert_equal(take(train_batches(source, **options), 8), plain)


@pytest.mark.parametrize("kind", ["small", "photographs"])
def test_a_balanced_order_is_the_same_for_any_resume_processes_and_workers(kind, image_folder):
    if kind == "small":
        source = from_arrays(small().images, np.repeat([0, 1, 2], [2, 5, 16]), name="skewed")
    else:
        root = image_folder(per_class={"train": 8})
        for number in range(2, 8):
            (root / "train" / "cat" / f"{number:03}.jpg").unlink()
        source = open_source({"name": str(root)}, "train")

    def batches(**options):
        order = BalancedOrder(5, source.labels)
        return train_batches(source, batch_size=8, seed=5, size=16, balanced=order, **options)

    whole = take(batches(), 6)
    for step, batch in enumerate(whole):
        indices, epochs = BalancedOrder(5, source.labels).at(np.arange(step * 8, step * 8 + 8))
        assert batch["index"].tolist() == indices.tolist() and batch["epoch"].tolist() == epochs.tolist()
        assert np.array_equal(batch["label"], source.labels[batch["index"]])
    shown = {pair for batch in whole for pair in zip(batch["index"].tolist(), batch["epoch"].tolist(), strict=True)}
    assert len(shown) == 48
    assert_equal(take(batches(start_step=4), 2), whole[4:])
    for rows in ([0, 1, 6, 7], [2, 3, 4, 5]):
        part = take(batches(rows=np.array(rows)), 6)
        assert_equal(part, [{key: value[rows] for key, value in batch.items()} for batch in whole])
    assert_equal(take(batches(squares=SquareCache(1)), 6), whole)
    if kind == "photographs":
        assert_equal(take(batches(workers=1), 6), whole)


def test_workers_and_cache_change_nothing(image_folder):
    source = open_source({"name": str(image_folder())}, "train")
    options = {"batch_size": 4, "seed": 5, "size": 16}
    plain = take(train_batches(source, **options), 8)  # four epochs
    cache = SquareCache(1)
    assert_equal(take(train_batches(source, squares=cache, **options), 8), plain)
    assert cache.of(source, 16).there.all()
    assert_equal(take(train_batches(source, squares=cache, **options), 8), plain)
    assert_equal(take(train_batches(source, workers=2, **options), 8), plain)


def test_a_cached_source_is_read_once_at_one_size(image_folder):
    root = image_folder()
    source, cache = open_source({"name": str(root)}, "train"), SquareCache(1)
    before = take(train_batches(source, batch_size=8, seed=5, size=16, squares=cache), 2)
    for index in range(len(source)):
        (root / source.example_id(index)).unlink()
    assert_equal(take(train_batches(source, batch_size=8, seed=5, size=16, squares=cache), 2), before)
    assert cache.of(source, 24).image.shape == (8, 24, 24, 3)  # those of another size have had their time
    with pytest.raises(DataError, match="No such file"):
        take(train_batches(source, batch_size=8, seed=5, size=16, squares=cache), 1)
    assert SquareCache(8 * 16 * 16 * 3 / 2**30).of(source, 16) and not SquareCache(7 * 16 * 16 * 3 / 2**30).of(
        source, 16
    )


@pytest.fixture
def broken(image_folder):
    """A function that opens a folder of eight training images of which two are damaged."""
    root = image_folder()
    paths = [root / "train" / "cat" / "001.jpg", root / "train" / "dog" / "003.jpg"]
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    paths[1].write_bytes(b"")

    def make(on_bad_image):
        return open_source({"name": str(root), "on_bad_image": on_bad_image}, "train"), [str(path) for path in paths]

    return make


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_stops_training_and_is_named(broken, workers):
    source, paths = broken("error")
    batches = train_batches(source, batch_size=4, seed=0, size=16, workers=workers)
    with pytest.raises(DataError) as error:
        take(batches, 2)
    assert any(path in str(error.value) for path in paths)
    with pytest.raises(DataError, match="empty file|truncated"):
        list(eval_batches(source, batch_size=8, resolution=16, crop="pad32"))


def test_bad_images_are_replaced_listed_and_change_nothing_else(broken):
    source, paths = broken("skip")
    met = []
    batches = take(train_batches(source, batch_size=4, seed=0, size=16, bad=met, squares=SquareCache(1)), 4)
    assert sorted(entry["id"] for entry in met) == sorted(paths)
    assert all("truncated" in entry["error"] or "empty file" in entry["error"] for entry in met)
    bad = [index for index in range(8) if source.example_id(index) in paths]
    for step, batch in enumerate(batches):
        for row, wanted in enumerate(step_indices(step, batch_size=4, seed=0, count=8)):
            expected = next(i % 8 for i in range(wanted, wanted + 8) if i % 8 not in bad)
            assert batch["index"][row] == expected
            assert batch["label"][row] == source.labels[expected]
    again = []
    assert_equal(take(train_batches(source, batch_size=4, seed=0, size=16, workers=1, bad=again), 4), batches)
    assert sorted(entry["id"] for entry in again) == sorted(paths)


def test_bad_images_do_not_count_in_evaluation(broken):
    source, paths = broken("skip")
    met = []
    (batch,) = eval_batches(source, batch_size=8, resolution=16, crop="pad32", bad=met)
    masked = {source.example_id(index) for index, mask in zip(batch["index"], batch["mask"], strict=True) if not mask}
    assert masked == set(paths) == {entry["id"] for entry in met}


def test_a_source_of_nothing_but_bad_images(image_folder):
    root = image_folder(per_class={"train": 2})
    for path in root.glob("train/*/*.jpg"):
        path.write_bytes(b"")
    source = open_source({"name": str(root), "on_bad_image": "skip"}, "train")
    with pytest.raises(DataError, match="no image can be decoded, the first because: .*empty file"):
        take(train_batches(source, batch_size=2, seed=0, size=16), 1)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 3, 16, 23])
def test_evaluation_counts_every_example_once_on_any_number_of_processes(count, processes):
    source = small(count)
    shares = [
        list(eval_batches(source, batch_size=8, resolution=8, crop="pad32", rows=rows))
        for rows in np.split(np.arange(8), processes)
    ]
    assert {len(share) for share in shares} == {evaluation_steps(count, 8)}
    assert {batch["image"].shape for share in shares for batch in share} == {(8 // processes, 8, 8, 3)}
    seen = [index for share in shares for batch in share for index in batch["index"][batch["mask"] > 0]]
    assert sorted(seen) == list(range(count))
    for batch in itertools.chain(*shares):
        real = batch["mask"] > 0
        assert np.array_equal(batch["image"][real], source.images[batch["index"][real]])
        assert np.array_equal(batch["label"][real], source.labels[batch["index"][real]])
        assert not batch["image"][~real].any() and np.all(batch["index"][~real] == -1)


def test_evaluation_of_photographs_is_the_originals(image_folder):
    source = open_source({"name": str(image_folder())}, "test")
    batches = list(eval_batches(source, batch_size=3, resolution=24, crop="frac"))
    assert [batch["mask"].tolist() for batch in batches] == [[1, 1, 1], [1, 0, 0]]
    for batch in batches:
        assert batch["image"].dtype == np.float32
        for row, index in enumerate(batch["index"][batch["mask"] > 0]):
            assert np.array_equal(batch["image"][row], evaluation_image(source[index]["image"], 24, "frac"))


def test_the_evaluation_rule_can_be_chosen(image_folder):
    photographs = open_source({"name": str(image_folder())}, "test")
    (squeezed,) = eval_batches(photographs, batch_size=4, resolution=24, crop="pad32", evaluation="resize")
    (cropped,) = eval_batches(photographs, batch_size=4, resolution=24, crop="pad32", evaluation="crop")
    assert squeezed["image"].shape == cropped["image"].shape == (4, 24, 24, 3)
    assert not np.array_equal(squeezed["image"], cropped["image"])
    (native,) = eval_batches(small(4), batch_size=4, resolution=24, crop="pad32", evaluation="resize")
    (host,) = eval_batches(small(4), batch_size=4, resolution=24, crop="none", evaluation="crop")
    assert native["image"].dtype == np.uint8 and native["image"].shape == (4, 8, 8, 3)
    assert host["image"].dtype == np.float32 and host["image"].shape == (4, 24, 24, 3)
    with pytest.raises(ConfigError, match="'crp': did you mean 'crop'"):
        eval_batches(small(4), batch_size=4, resolution=24, crop="pad32", evaluation="crp")


def test_prefetch_keeps_the_order_and_runs_ahead():
    put = []
    batches = prefetch(({"step": step} for step in range(5)), lambda batch: put.append(batch["step"]) or batch, depth=2)
    assert next(batches) == {"step": 0}
    assert put == [0, 1]
    assert [batch["step"] for batch in batches] == [1, 2, 3, 4]


def test_square_size():
    assert square_size(224) == 256
    assert square_size(224, 300) == 300


def test_cifar100_test_set_counts_ten_thousand(shared):
    source = open_source({"name": "cifar100", "data_dir": str(shared / "data" / "tfds")}, "test")
    batches = list(eval_batches(source, batch_size=96, resolution=224, crop="pad32"))
    assert len(batches) == 105 and sum(batch["mask"].sum() for batch in batches) == 10_000
    labels = np.concatenate([batch["label"][batch["mask"] > 0] for batch in batches])
    assert np.array_equal(labels, source.labels) and np.all(np.bincount(labels) == 100)
