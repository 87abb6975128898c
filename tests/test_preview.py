"""The picture of what the model sees."""

import sys

import numpy as np
import pytest
from PIL import Image

from effnet_jax import preview
from effnet_jax.data.preprocess import evaluation_image
from effnet_jax.data.sources import open_source
from effnet_jax.errors import ConfigError, run_command
from effnet_jax.preview import Views, collect_views, draw_views
from effnet_jax.train.config import default_config, phase


def make_config(folder, **augment):
    config = default_config()
    config.data.name = str(folder)
    config.data.crop = "pad32"
    config.resolution = 48
    config.batch_size = 8
    config.augment.update(augment)
    config.phases = (
        phase(name="head", epochs=1),
        phase(name="blocks", train=("all",), batch_norm="train", epochs=1, augment={"mixup": 1.0}),
    )
    return config


def test_both_sides_show_the_same_examples_as_the_run_does(image_folder):
    config = make_config(image_folder(), flip=True)
    views = collect_views(config, count=5)
    assert views.training.shape == views.evaluation.shape == (5, 48, 48, 3)
    assert views.training_captions == views.evaluation_captions
    assert "flip True" in views.title and "shift" not in views.title
    source = open_source(config.data, "train")
    expected = [evaluation_image(source[i]["image"], 48, "pad32") for i in range(len(source))]
    for view in views.evaluation:
        assert min(np.abs(view - other).max() for other in expected) < 1e-3


def test_a_phases_own_augmentation_is_shown_with_the_shares_of_mixed_classes(image_folder):
    names = ("cat", "dog", "fox", "owl")
    views = collect_views(make_config(image_folder(names), label_smoothing=0.1), phase="blocks", count=8)
    mixed = [caption.split() for caption in views.training_captions if "\n" in caption]
    assert mixed
    for name, share, partner, rest in mixed:
        assert {name, partner} <= set(names) and name != partner
        assert 98 <= float(share.rstrip("%")) + float(rest.rstrip("%")) <= 102
    with pytest.raises(ConfigError, match="did you mean 'blocks'"):
        collect_views(make_config(image_folder(name="more")), phase="block")


def test_some_views_of_a_step_are_those_of_the_whole_batch(image_folder):
    config = make_config(image_folder(("cat", "dog", "fox", "owl")), flip=True, shift=0.2)
    every, some = (collect_views(config, phase="blocks", step=2, count=count) for count in (8, 3))
    np.testing.assert_allclose(some.training, every.training[:3], atol=1e-3)
    assert some.training_captions == every.training_captions[:3]


def test_a_balanced_phase_shows_an_image_in_several_ways(image_folder):
    root = image_folder(per_class={"train": 4})
    for number in range(1, 4):
        (root / "train" / "cat" / f"{number:03}.jpg").unlink()
    config = make_config(root, shift=0.2)
    config.sampling = "balanced"
    config.phases = (phase(name="head", epochs=1),)
    views = collect_views(config)
    cats = [view for view, name in zip(views.training, views.training_captions, strict=True) if name == "cat"]
    assert len(cats) > 1 and np.abs(cats[0] - cats[1]).max() > 1


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_the_command_writes_a_picture(image_folder, tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from effnet_jax.train.config import default_config, phase\n"
        "def get_config(mode=''):\n"
        "    config = default_config()\n"
        "    config.resolution, config.batch_size = 48, 8\n"
        "    config.data.crop = 'none'\n"
        "    config.phases = (phase(name='head', epochs=1),)\n"
        "    return config\n"
    )
    out = tmp_path / "batch.png"
    arguments = [f"--config={recipe}", f"--config.data.name={image_folder()}", f"--out={out}", "--count=4"]
    monkeypatch.setattr(sys, "argv", ["preview", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(preview.main)
    assert ended.value.code == 0
    assert f"wrote {out}" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > 300
    assert not list(tmp_path.glob(".*partial*"))


def test_a_picture_goes_into_a_folder_that_is_not_there_yet(tmp_path):
    images = np.zeros((1, 8, 8, 3), np.float32)
    path = tmp_path / "new" / "batch.png"
    draw_views(Views("a batch", images, ["cat"], images, ["cat"]), path)
    assert path.read_bytes().startswith(b"\x89PNG") and list(path.parent.iterdir()) == [path]
