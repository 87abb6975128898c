import pytest

from effnet_jax.errors import ConfigError
from effnet_jax.predict.buckets import bucket, bucket_sizes, default_batch_size


@pytest.mark.parametrize(
    ("batch_size", "devices", "sizes"),
    [
        (1, 1, (1,)),
        (16, 1, (1, 4, 16)),
        (20, 1, (1, 4, 16, 20)),
        (16, 8, (8, 16)),
        (1, 8, (8,)),
        (100, 8, (8, 32, 104)),
    ],
)
def test_sizes_are_few_and_shared_by_the_devices(batch_size, devices, sizes):
    assert bucket_sizes(batch_size, devices) == sizes
    for count in range(1, sizes[-1] + 1):
        assert bucket(count, sizes) == min(size for size in sizes if size >= count)


def test_a_batch_size_of_nothing():
    with pytest.raises(ConfigError, match="counts from 1 up"):
        bucket_sizes(-1)


def test_the_device_and_the_resolution_choose_the_batch_size():
    assert default_batch_size("cpu", 1, 224) == 16
    assert default_batch_size("gpu", 1, 224) == 128
    assert default_batch_size("tpu", 8, 224) == 1024
    assert default_batch_size("cpu", 1, 32) == 64
    assert default_batch_size("cpu", 1, 1200) == 1
    assert default_batch_size("gpu", 1, 600) == 16
