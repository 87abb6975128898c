"""CIFAR-100 with EfficientNet-B0 from scratch, by the original's ImageNet recipe: what transfer is compared with.

    python -m effnet_jax.train --config=configs/cifar100_b0_scratch.py --workdir=runs/scratch --config.data.data_dir=DIR

RMSProp (decay 0.9, momentum 0.9, epsilon 0.001) at 0.016 for 256 images, five epochs of warm-up, a factor 0.97 every
2.4 epochs, weight decay 1e-5, batch norm trained, AutoAugment, label smoothing, and moving averages of 0.9999, which
matter here: `main.py` and `utils.py` of the original code. On transferred weights this optimizer blows up, which is
measured in docs/results.md.

350 epochs are meant for a GPU or a TPU and were not run here.
"""

from ml_collections import ConfigDict

from effnet_jax.train.config import default_config, phase, shrink


def get_config(mode: str = "") -> ConfigDict:
    config = default_config()
    config.variant = "b0"
    config.batch_size = 256
    config.dtype = "bfloat16"
    config.batch_norm = "train"
    config.ema = 0.9999
    config.eval_every = 5
    config.data.name = "cifar100"
    config.data.train = "train[:95%]"
    config.data.validation = "train[95%:]"
    config.augment.flip = True
    config.augment.crop = (0.25, 1.0)
    config.augment.policy = "cifar10"
    config.augment.policy_at = "source"
    config.augment.label_smoothing = 0.1
    config.phases = (
        phase(
            name="scratch",
            train=("all",),
            epochs=350,
            optimizer="rmsprop",
            learning_rate=0.016,
            scale_learning_rate=True,
            schedule="exponential",
            warmup=5.0,
            weight_decay=1e-5,
        ),
    )
    if mode == "smoke":
        config.data.train, config.data.validation, config.data.test = "train[:256]", "train[-64:]", "test[:64]"
        shrink(config)
    return config
