"""CIFAR-100 with EfficientNet-B0 at 224: the full recipe, for a GPU or a TPU.

    python -m effnet_jax.prepare cifar100 --data_dir=DIR
    python -m effnet_jax.train --config=configs/cifar100_b0.py --workdir=runs/cifar100_b0 --config.data.data_dir=DIR

The classifier alone first, from a cache of pooled features; then everything for 100 epochs, batch norm still, with
Nesterov momentum and cosine decay as Kornblith et al. (2019) and the EfficientNet paper (2019) fine-tune, and the
RandAugment, mixup and random erasing that keep so many epochs from being learnt by heart.

On one TPU v5e chip the second phase needs 3.5 GiB, by its compiler (docs/results.md, "On TPU, as compiled").

Expected from the literature, not measured here: 87 to 88 % at the end (the EfficientNet paper: 88.1 %). What
two CPU cores reach in a bounded time is measured: configs/cifar100_b0_cpu.py.
"""

from ml_collections import ConfigDict

from effnet_jax.train.config import default_config, phase, shrink


def get_config(mode: str = "") -> ConfigDict:
    config = default_config()
    config.variant = "b0"
    config.weights = "noisy_student_b0"
    config.batch_size = 256
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
            epochs=100,
            learning_rate=0.05,
            nesterov=True,
            warmup=2.0,
            weight_decay=1e-4,
            clip_norm=1.0,
            # On the images' own 32×32 pixels the policy is cheaper than on the resized ones.
            augment={
                "flip": True,
                "crop": (0.5, 1.0),
                "randaugment": (2, 10),
                "policy_at": "source",
                "mixup": 0.2,
                "erase": 0.25,
            },
        ),
    )
    if mode == "smoke":
        config.data.train, config.data.validation, config.data.test = "train[:256]", "train[-64:]", "test[:64]"
        shrink(config)
    return config
