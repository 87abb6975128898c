"""What is settled before the first step: how photographs are seen, and what a run dir of an earlier version keeps."""

import json

import numpy as np
import pytest
from PIL import Image

from effnet_jax import files
from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.arrays import from_arrays
from effnet_jax.data.sources.base import typical_side
from effnet_jax.errors import ConfigError
from effnet_jax.train.config import check_config, default_config, phase
from effnet_jax.train.phases import make_phases
from effnet_jax.train.rundir.workdir import as_begun
from effnet_jax.train.start import open_sources
from effnet_jax.weights.metadata import Metadata

PORTED = Metadata("b0", "imagenet", "imagenet", crop="pad32", resolution=224, num_classes=1000)


def config_of(folder="photos", **data):
    config = default_config()
    config.weights = "weights/b0"
    config.data.update(name=str(folder), **data)
    config.phases = (phase(epochs=1), phase(name="small", epochs=1, resolution=96))
    return check_config(config)


@pytest.mark.parametrize(
    ("data", "side", "native", "small"),
    [
        ({}, 230, ("pad32", "bicubic"), ("frac", "antialias")),  # no larger than it is trained at, and larger
        ({}, 3000, ("pad32", "antialias"), ("frac", "antialias")),
        ({"resize": "bicubic"}, 3000, ("pad32", "bicubic"), ("pad32", "bicubic")),  # as the original
        ({"crop": "none"}, 3000, ("none", "antialias"), ("none", "antialias")),
        ({}, 0, ("pad32", "bicubic"), ("frac", "bicubic")),  # small images
    ],
)
def test_photographs_are_evaluated_as_they_are_trained(data, side, native, small):
    feeds = [one.feed for one in make_phases(config_of(**data), {"train": 100}, PORTED, side)]
    assert [(feed.crop, feed.resize) for feed in feeds] == [native, small]


def test_a_run_of_a_version_without_the_key_keeps_the_rule_that_it_began_with(tmp_path):
    config = config_of()
    old = json.loads(json.dumps(config.to_dict(), default=str))
    assert as_begun(files.as_path(tmp_path), config).data.resize == "auto"  # a new one
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert as_begun(files.as_path(tmp_path), config).data.resize == "auto"
    del old["data"]["resize"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert as_begun(files.as_path(tmp_path), config).data.resize == "bicubic"


def test_phases_weigh_and_balance_the_classes_of_the_training_images():
    labels = np.repeat([0, 1], [90, 10])
    source = from_arrays(np.zeros((100, 4, 4, 3), np.uint8), labels, ("cat", "dog"))
    config = default_config()
    config.weights, config.data.name, config.batch_size, config.class_weights = "weights/b0", "pets", 10, "balanced"
    config.phases = (
        phase(epochs=1),
        phase(name="own", epochs=1, class_weights={"dog": 9}),
        phase(name="even", epochs=3, class_weights="none", sampling="balanced", views=50),
    )
    first, own, even = make_phases(check_config(config), {"train": 100}, train=source)
    np.testing.assert_allclose(first.class_weights, [5 / 9, 5])
    np.testing.assert_allclose(own.class_weights, [1 / 1.8, 5])
    assert even.class_weights is None
    assert [one.feed.sampling for one in (first, own, even)] == ["natural", "natural", "balanced"]
    assert first.feed.balanced is None and even.end - even.start == 30  # an epoch is as many images as the set has
    batches = even.feed.training(source, even.start, np.arange(10))
    assert np.mean([next(batches)["label"].mean() for _ in range(30)]) == pytest.approx(0.5, abs=0.1)
    assert 15 <= even.views < 50 + 52  # as often as the small class is gone through
    config.phases[1].class_weights = {"dgo": 9}
    with pytest.raises(ConfigError, match="'dgo', which is no class: did you mean 'dog'"):
        make_phases(check_config(config), {"train": 100}, train=source)
    for shapes_alone in make_phases(check_config(config), {"train": 100})[2:]:
        with pytest.raises(ValueError, match="goes by the labels"):
            shapes_alone.feed.training(source, 0, np.arange(10))


def test_the_typical_side_is_that_of_photographs(image_folder):
    source = open_source({"name": str(image_folder(size=(40, 90), vary=False))}, "train")
    assert typical_side(source) == 40


def test_images_that_are_nearly_black_by_their_type_are_told_once(image_folder):
    root = image_folder()
    for path in root.glob("train/*/*.jpg"):
        values = np.random.default_rng(0).integers(0, 4096, (40, 40)).astype(np.uint16)
        Image.fromarray(values).save(path.with_suffix(".png"))  # 12 bits of a camera in 16
        path.unlink()
    _, warnings = open_sources(config_of(root))
    (note,) = [line for line in warnings if "hardly seen" in line]
    assert note.startswith("8 of 8 images") and ".png" in note and "4,0" in note


def test_what_was_not_read_is_among_the_opening_lines(image_folder):
    root = image_folder()
    (root / "train" / "cat" / "a.heic").write_bytes(b"x")
    assert "1 file was not read: 1 .heic (convert them)" in open_sources(config_of(root))[1]
