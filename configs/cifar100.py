"""CIFAR-100 with EfficientNet-B1 to B6, each at its resolution: `--config=configs/cifar100.py:b3`.

    python -m effnet_jax.train --config=configs/cifar100.py:b3 --workdir=runs/cifar100_b3 --config.data.data_dir=DIR

The classifier alone, from a cache of pooled features; then everything, batch norm still, as configs/cifar100_b0.py does
it: the larger the network, the fewer the epochs and the lower the rate. B0, B7 and L2 have recipes of their own.

Each fits a single TPU v5e chip of 16 GB, the smallest slice there is, with 256 images in so many microbatches. What its
compiler says of the second phase's training step (`python -m effnet_jax.tpu --config=configs/cifar100.py:b3
--topology=v5e:1x1`; images a second are what bandwidth and peak allow at most):

    variant          b1      b2      b3      b4      b5      b6
    microbatches      1       2       4       8      16      32
    GiB a chip      5.6     3.8     4.8     5.7     6.0     5.4
    GFLOP an image  4.7     6.7    12.0    28.1    64.3   118.2
    images/s      3,865   3,346   2,189   1,246     726     492

On N chips each has an N-th of the batch, and `--config.microbatches` may be as much smaller.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from effnet_jax.train.config import default_config, phase, shrink


class Size(NamedTuple):
    """What depends on the variant. `microbatches` are for a single chip of 16 GB; each of N chips needs an N-th."""

    microbatches: int
    epochs: int
    learning_rate: float
    randaugment: int  # magnitude


SIZES = {
    "b1": Size(1, 80, 0.05, 10),
    "b2": Size(2, 60, 0.04, 11),
    "b3": Size(4, 50, 0.04, 12),
    "b4": Size(8, 40, 0.03, 13),
    "b5": Size(16, 30, 0.03, 14),
    "b6": Size(32, 25, 0.02, 15),
}


def get_config(argument: str = "b1") -> ConfigDict:
    variant, _, mode = argument.partition(",")
    if variant == "smoke" or not variant:
        variant, mode = "b1", variant
    if variant not in SIZES:
        raise ValueError(f"configs/cifar100.py:{variant}: this recipe is for {', '.join(SIZES)}, such as :b3")
    size = SIZES[variant]
    config = default_config()
    config.variant = variant
    config.weights = f"noisy_student_{variant}"
    config.batch_size = 256
    config.microbatches = size.microbatches
    config.dtype = "bfloat16"
    config.eval_every = 5
    config.data.name = "cifar100"
    config.data.train = "train[:95%]"
    config.data.validation = "train[95%:]"
    config.augment.label_smoothing = 0.1
    config.phases = (
        phase(
            name="head",
            train=("classifier",),
            epochs=20,
            learning_rate=0.4,
            weight_decay=3e-4,
            augment={"flip": True},
            views=2,
            cache="memory",
            cache_dtype="float32",
        ),
        phase(
            name="all",
            train=("all",),
            epochs=size.epochs,
            learning_rate=size.learning_rate,
            nesterov=True,
            warmup=1.0,
            weight_decay=1e-4,
            clip_norm=1.0,
            augment={
                "flip": True,
                "crop": (0.5, 1.0),
                "randaugment": (2, size.randaugment),
                "policy_at": "source",
                "mixup": 0.2,
                "erase": 0.25,
            },
        ),
    )
    if mode == "smoke":
        config.data.train, config.data.validation, config.data.test = "train[:64]", "train[-16:]", "test[:16]"
        config.microbatches = 1
        config.phases = config.phases[:1]
        shrink(config, batch_size=8)
    return config
