"""What the proofs on whole runs share: a recipe of three phases on a small image folder."""

import pytest

from tests import synthetic

RECIPE = """
from effnet_jax.train.config import default_config, phase

def get_config():
    config = default_config()
    config.variant, config.weights, config.resolution = "lite0", {weights!r}, 32
    config.batch_size, config.log_every, config.ema = 8, 2, 0.9
    config.data.name = {images!r}
    config.augment.flip = True
    config.checkpoint.minutes, config.checkpoint.steps = 0.02, 5
    adam = dict(optimizer="adam", momentum=0.9)
    config.phases = (
        phase(name="head", epochs=4, learning_rate=0.003, schedule="plateau", plateau_patience=1, views=2, cache="disk",
              **adam),
        phase(name="top", train=("top", "classifier"), epochs=3, learning_rate=0.001, keep_optimizer=True, views=2,
              cache="disk", **adam),
        phase(name="blocks", train=("block7:",), epochs=2, learning_rate=0.001, keep_optimizer=True,
              augment={{"mixup": 0.2}}, **adam),
    )
    return config
"""


@pytest.fixture
def recipe(tmp_path, image_folder):
    """The recipe's file: disk caches, a plateau, moving averages and kept moments, and checkpoints every second."""
    images = image_folder(per_class={"train": 32, "validation": 12, "test": 12}, size=(60, 50), vary=False)
    weights = tmp_path / "lite0"
    synthetic.write_weights_dir(weights)
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(weights=str(weights), images=str(images)))
    return path
