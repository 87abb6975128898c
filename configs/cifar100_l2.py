"""CIFAR-100 with EfficientNet-L2 at 475, from its Noisy Student weights, for a TPU pod.

    python -m effnet_jax.train --config=configs/cifar100_l2.py --workdir=runs/cifar100_l2 --config.data.data_dir=DIR

480 million parameters: the classifier from a cache of pooled features, then everything with SAM, whose two gradients a
step find flat minima (Foret et al. 2021, the best published figure of this network on CIFAR-100: 96.08 %). Parameters,
moments and averages are shared by 16 chips (`partition.fsdp`).

On a TPU v5e:4x4 the second phase needs 9.7 of a chip's 16 GB, and computes at most 679 images a second in all: 2,403
GFLOP an image, by its compiler (docs/results.md, "On TPU, as compiled").

Expected from the literature, not measured here: 96 %. It is the last network to try: B0 to B3 take hours where this
takes a pod.
"""

from ml_collections import ConfigDict

from effnet_jax.train.config import default_config, phase, shrink


def get_config(mode: str = "") -> ConfigDict:
    config = default_config()
    config.variant = "l2"
    config.weights = "noisy_student_l2_475"
    config.resolution = 475
    config.batch_size = 256
    config.dtype = "bfloat16"
    config.remat = True
    config.partition.fsdp = 16
    config.data.name = "cifar100"
    config.data.train = "train[:95%]"
    config.data.validation = "train[95%:]"
    config.augment.label_smoothing = 0.1
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
            name="all",
            train=("all",),
            epochs=10,
            learning_rate=0.01,
            sam=0.05,
            warmup=0.5,
            weight_decay=1e-4,
            clip_norm=1.0,
            augment={"flip": True, "crop": (0.5, 1.0), "policy": "cifar10", "policy_at": "source"},
        ),
    )
    if mode == "smoke":
        config.data.train, config.data.validation, config.data.test = "train[:64]", "train[-16:]", "test[:16]"
        config.phases = config.phases[:1]
        shrink(config, batch_size=8)
    return config
