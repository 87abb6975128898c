"""The batch sizes that are compiled: few, so that compiling ends, with small ones, so that few images cost little."""

import math

from effnet_jax.errors import ConfigError

# Images of 224 pixels that keep one device busy, and the most that are worth a batch when images are smaller.
_BUSY = {"cpu": (16, 64), "gpu": (128, 512), "tpu": (128, 512)}
_GROWTH = 4


def default_batch_size(platform: str, devices: int, resolution: int) -> int:
    """The batch size that keeps devices busy without filling their memory, of all devices together.

    Args:
      platform: `"cpu"`, `"gpu"` or `"tpu"`.
      devices: how many there are.
      resolution: side of what the model sees, in pixels.
    """
    at_224, most = _BUSY.get(platform, _BUSY["gpu"])
    each = at_224 * (224 / resolution) ** 2
    return devices * min(most, 2 ** max(0, math.floor(math.log2(each))))


def bucket_sizes(batch_size: int, devices: int = 1) -> tuple[int, ...]:
    """The sizes from one image a device up to `batch_size`, each four times the one before.

    Args:
      batch_size: the most; raised to a multiple of the devices.
      devices: that share a batch.

    Raises:
      ConfigError: a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: it counts from 1 up, and 0 chooses it by the device")
    largest = math.ceil(batch_size / devices)
    each = 1
    sizes = []
    while each < largest:
        sizes.append(each * devices)
        each *= _GROWTH
    return (*sizes, largest * devices)


def bucket(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest size that holds `count` images, which are no more than the largest does."""
    return next(size for size in sizes if size >= count)
