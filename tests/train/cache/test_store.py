import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from effnet_jax.data.sources.base import ArraySource, fingerprint
from effnet_jax.errors import ConfigError, EffnetError, RunError
from effnet_jax.train import loop
from effnet_jax.train.cache import fill as cache_fill
from effnet_jax.train.cache.plan import cache_key, plan_cache, trunk_hash
from effnet_jax.train.config import check_config, default_config, phase
from effnet_jax.train.phases import make_phases
from effnet_jax.train.step.freeze import FreezePlan
from effnet_jax.weights.store import read_weights, write_weights
from tests import synthetic

IMAGES = {"train": 40, "validation": 10}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "lite0"
    synthetic.write_weights_dir(path)
    return path


@pytest.fixture
def config(weights, image_folder):
    """Three epochs of 5 steps of 8 images over two views, without a cache."""
    result = default_config()
    result.variant = "lite0"
    result.weights = str(weights)
    result.resolution = 32
    result.batch_size = 8
    result.log_every = 1
    result.data.name = str(image_folder(per_class={"train": 20, "validation": 5}, size=(60, 50)))
    result.data.test = ""
    result.augment.flip = True
    result.augment.shift = 0.1
    result.phases = (phase(name="blocks", train=("block7:",), epochs=3, views=2, learning_rate=0.003),)
    return result


def cached(config, **keys):
    result = config.copy_and_resolve_references()
    result.phases = (phase(**{**config.phases[0].to_dict(), **keys}),)
    return result


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows]), [row["split"] for row in rows]


def test_training_from_the_cache_equals_training_on_the_same_views(config, tmp_path, monkeypatch, capsys):
    loop.train(config, tmp_path / "plain")
    wanted, splits = losses(tmp_path / "plain")
    seen = []
    monkeypatch.setattr(cache_fill, "fill_cache", counted(cache_fill.fill_cache, seen))
    loop.train(cached(config, cache="disk", cache_dtype="float32"), tmp_path / "disk")

    found, again = losses(tmp_path / "disk")
    assert again == splits and splits.count("validation") == 3
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    assert seen == ["block6d"]
    assert (
        "outputs of block6d, 1×1×192 in float32, of 40 train × 2 views + 10 validation images"
        in capsys.readouterr().out
    )
    assert not list((tmp_path / "disk").glob("trunk_cache*"))  # it has had its time
    plain, disk = (read_weights(tmp_path / name / "weights")[0] for name in ("plain", "disk"))
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain["params"]):
        other = disk["params"]
        for key in path:
            other = other[key.key]
        np.testing.assert_allclose(other, leaf, rtol=1e-4, atol=1e-5 * np.abs(leaf).max())


def test_classes_are_weighed_and_balanced_from_the_cache_as_without_it(config, tmp_path, capsys):
    for number in range(2, 20):
        (Path(config.data.name) / "train" / "dog" / f"{number:03}.jpg").unlink()
    config.augment.label_smoothing = 0.1
    keys = {"train": ("classifier",), "epochs": 2, "learning_rate": 0.1}
    config.phases = (
        phase(name="weighed", class_weights="balanced", views=2, **keys),
        phase(name="even", sampling="balanced", class_weights={"dog": 3.0}, views=2, **keys),
    )
    loop.train(config, tmp_path / "plain")
    assert "images per class: 2 (dog) to 20 (cat), median 11" in (words := capsys.readouterr().out)
    assert "advice: the largest class" not in words
    config.phases = tuple(
        phase(**{**one.to_dict(), "cache": "memory", "cache_dtype": "float32"}) for one in config.phases
    )
    loop.train(config, tmp_path / "cached")
    (wanted, splits), (found, again) = losses(tmp_path / "plain"), losses(tmp_path / "cached")
    assert again == splits
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


def counted(fill, seen):
    def fill_and_count(run, phase, state, cache):
        seen.append(cache.plan.cut)
        yield from fill(run, phase, state, cache)

    return fill_and_count


@pytest.mark.slow
def test_a_fill_on_disk_goes_on_where_it_stopped(config, tmp_path, monkeypatch):
    config = cached(config, train=("classifier",), cache="disk", cache_dtype="float16")
    loop.train(config, tmp_path / "whole")
    wanted, _ = losses(tmp_path / "whole")

    filled = []
    write = cache_fill.TrunkCache.write

    def stop_inside(cache, split, rows, outputs, batch):
        write(cache, split, rows, outputs, batch)
        filled.append((cache.plan.cut, split, int(rows[0])))
        if len(filled) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cache_fill.TrunkCache, "write", stop_inside)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "stopped")
    assert filled[-1] == ("top", "train", 8)
    loop.train(config, tmp_path / "stopped")
    assert filled[4] == ("top", "train", 16)
    found, _ = losses(tmp_path / "stopped")
    assert found.tolist() == wanted.tolist()


@pytest.mark.slow
def test_in_memory_a_resume_fills_again_and_bad_images_are_listed(config, tmp_path, monkeypatch):
    for split in ("train", "validation"):
        path = Path(config.data.name) / split / "cat" / "000.jpg"
        path.write_bytes(path.read_bytes()[:300])
    config.data.on_bad_image = "skip"
    config = cached(config, train=("classifier",), epochs=2, cache="memory")
    summary = loop.train(config, tmp_path / "whole")
    assert {split: len(images) for split, images in summary["skipped_images"].items()} == {"train": 1, "validation": 1}
    assert summary["validation"]["count"] == 9

    record_steps = loop.record_steps

    stopped = []

    def stop_at_seven(run, phase, standing, **options):
        record_steps(run, phase, standing, **options)
        if int(standing.state.step) == 7 and not stopped:  # a second signal would end the process at once
            stopped.append(7)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "record_steps", stop_at_seven)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "stopped")
    monkeypatch.setattr(loop, "record_steps", record_steps)
    again = loop.train(config, tmp_path / "stopped")
    assert again["skipped_images"] == summary["skipped_images"]
    assert losses(tmp_path / "stopped")[0].tolist() == losses(tmp_path / "whole")[0].tolist()


def test_no_view_is_computed_that_is_not_shown():
    config = default_config()
    config.weights, config.data.name, config.batch_size = "weights/b0", "cifar100", 10
    config.phases = (
        phase(name="short", steps=3, views=4, cache="memory"),
        phase(name="long", epochs=5, views=4, cache="memory"),
    )
    short, long = make_phases(check_config(config), {"train": 40})
    assert (short.views, short.cache.rows["train"]) == (1, 40)
    assert (long.views, long.cache.rows["train"]) == (4, 160)


def test_the_cut_is_as_deep_as_the_plan_and_the_budget_allow():
    plan = FreezePlan("b0", ("top", "classifier"))
    keys = {"cache": "memory", "cache_gib": 4.0, "cache_dtype": "float16"}
    at = {"resolution": 224, "images": IMAGES, "where": "phases[0]"}
    deepest = plan_cache(keys, plan, 1, **at)
    assert (deepest.cut, deepest.first, deepest.shape) == ("block7a", "top", (7, 7, 320))
    assert deepest.bytes == 50 * 7 * 7 * 320 * 2
    # 7×7×192 values are fewer than 7×7×320: a smaller budget cuts one block earlier.
    smaller = plan_cache({**keys, "cache_gib": 0.99 * deepest.bytes / 2**30}, plan, 1, **at)
    assert (smaller.cut, smaller.first) == ("block6d", "block7a")
    head = plan_cache(keys, FreezePlan("b0", ("classifier",)), 1, **at)
    assert (head.cut, head.shape) == ("top", (1280,))
    with pytest.raises(ConfigError, match=r"phases\[0\].cache_gib=0.0001 is too small for any cut; the smallest"):
        plan_cache({**keys, "cache_gib": 1e-4}, plan, 1, **at)


def test_the_key_tells_weights_data_and_settings_apart():
    keys = {"cache": "memory", "cache_gib": 4.0, "cache_dtype": "float16"}
    plan = plan_cache(keys, FreezePlan("lite0", ("top:",)), 1, resolution=32, images={"train": 4}, where="")
    variables = synthetic.variables("lite0", num_classes=4)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    source = ArraySource("four", images, np.arange(4, dtype=np.int32), ("a", "b", "c", "d"))
    about = {"augment": {"flip": True}}
    first = cache_key(plan, about, trunk_hash(plan, variables), {"train": source})

    variables["params"]["top"]["conv"]["kernel"][0] += 1  # of a trained unit
    bigger = dataclasses.replace(plan, gib=8.0)
    assert first == cache_key(bigger, about, trunk_hash(plan, variables), {"train": source})
    variables["batch_stats"]["stem"]["bn"]["mean"][0] += 1
    other_labels = dataclasses.replace(source, labels=source.labels[::-1])
    untouched = trunk_hash(plan, synthetic.variables("lite0"))
    others = [
        cache_key(plan, about, trunk_hash(plan, variables), {"train": source}),
        cache_key(plan, {"augment": {"flip": False}}, untouched, {"train": source}),
        cache_key(plan, about, untouched, {"train": other_labels}),
    ]
    assert len({first, *others}) == 4
    assert fingerprint(source) != fingerprint(dataclasses.replace(source, images=images[::-1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 0}, r"phases\[0\].views=1 or more, or cache=''"),
        ({"augment": {"mixup": 0.2}}, r"mixup mixes images at every step: turn it off in phases\[0\].augment"),
        ({"cache": "ram"}, r"phases\[0\].cache='ram' is unknown: .*memory"),
        ({"cache_dtype": "float8"}, r"phases\[0\].cache_dtype='float8' is unknown: .*float16"),
        ({"train": ("all",)}, r"phases\[0\] trains the stem, so that no frozen output could be kept"),
        ({"resolution": 16}, r"phases\[0\].resolution=16 is too small"),
    ],
)
def test_a_cache_that_cannot_work_is_refused(change, message):
    config = default_config()
    config.weights, config.data.name = "weights/b0", "cifar100"
    config.phases = (phase(**{"name": "head", "epochs": 1, "views": 1, "cache": "memory", **change}),)
    with pytest.raises(EffnetError, match=message):
        check_config(config)


def test_outputs_beyond_float16_are_told(config, tmp_path, weights):
    variables, metadata = read_weights(weights)
    bias = variables["params"]["block6d"]["project_bn"]["bias"]
    variables["params"]["block6d"]["project_bn"]["bias"] = bias + 1e6
    write_weights(tmp_path / "huge", variables, metadata)
    config.weights = str(tmp_path / "huge")
    with pytest.raises(RunError, match="an output of block6d is no number in float16: set cache_dtype='float32'"):
        loop.train(cached(config, cache="memory"), tmp_path / "run")
