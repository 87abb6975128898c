"""CIFAR-100 with EfficientNet-B0 on two CPU cores."""

from ml_collections import ConfigDict

from effnet_jax.train.config import default_config, phase


def get_config(mode: str = "") -> ConfigDict:
    config = default_config()
    config.variant = "b0"
    config.weights = "weights/b0"
    config.batch_size = 64
    config.data.name = "cifar100"
    config.data.train = "train[:95%]"
    config.data.validation = "train[95%:]"
    config.log_every = 20
    config.phases = (
        phase(
            name="head",
            train=("classifier",),
            epochs=20,
            learning_rate=0.1,
            weight_decay=3e-4,
            augment={"label_smoothing": 0.1},
            views=1,
            cache="memory",
            cache_dtype="float32",
        ),
        phase(
            name="blocks",
            train=("block4:",),
            epochs=4,
            resolution=160,
            learning_rate=0.02,
            warmup=0.2,
            weight_decay=1e-4,
            augment={"flip": True, "shift": 0.1, "zoom": 0.15, "label_smoothing": 0.1},
        ),
    )
    return config
