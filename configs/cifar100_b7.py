"""CIFAR-100 with EfficientNet-B7 at 600, for a TPU slice or several GPUs.

    python -m effnet_jax.train --config=configs/cifar100_b7.py --workdir=runs/cifar100_b7 --config.data.data_dir=DIR

The classifier, then the last two stages, then everything: a larger network learns small images by heart sooner, so it
is reopened in phases, at lower rates towards the input, and with stronger augmentation. Blocks are recomputed in the
backward pass to save memory.

Its 128 images fit a single TPU v5e chip of 16 GB with `--config.microbatches=16`: 3.5 GiB for the last phase, 272
GFLOP an image and at most 254 images a second, by its compiler (docs/results.md, "On TPU, as compiled").

Expected from the literature, not measured here: about 91 to 92 % (the EfficientNet paper: 91.7 %). Try B0 to B3 first:
larger variants do not always transfer better, and B7 at 600 costs about a hundred times B0 at 224.
"""

from ml_collections import ConfigDict

from effnet_jax.train.config import default_config, phase, shrink


def get_config(mode: str = "") -> ConfigDict:
    config = default_config()
    config.variant = "b7"
    config.weights = "noisy_student_b7"
    config.batch_size = 128
    config.dtype = "bfloat16"
    config.remat = True
    config.eval_every = 2
    config.data.name = "cifar100"
    config.data.train = "train[:95%]"
    config.data.validation = "train[95%:]"
    config.augment.label_smoothing = 0.1
    strong = {"flip": True, "crop": (0.5, 1.0), "randaugment": (2, 15), "policy_at": "source", "mixup": 0.2}
    config.phases = (
        phase(
            name="head",
            train=("classifier",),
            epochs=20,
            learning_rate=0.2,
            weight_decay=3e-4,
            views=1,
            cache="memory",
            cache_dtype="float32",
        ),
        phase(
            name="late",
            train=("block6:",),
            epochs=5,
            learning_rate=0.02,
            warmup=0.5,
            weight_decay=1e-4,
            clip_norm=1.0,
            augment=strong,
        ),
        phase(
            name="all",
            train=("all",),
            epochs=20,
            learning_rate=0.02,
            nesterov=True,
            warmup=1.0,
            weight_decay=1e-4,
            clip_norm=1.0,
            layer_decay=0.97,
            augment=strong,
        ),
    )
    if mode == "smoke":
        config.data.train, config.data.validation, config.data.test = "train[:64]", "train[-16:]", "test[:16]"
        config.phases = tuple(keys for keys in config.phases if keys.name != "all")
        shrink(config, batch_size=8)
    return config
