import importlib.util
import os

import pytest

from effnet_jax.errors import ConfigError, EffnetError
from effnet_jax.tpu.chips import CHIPS, parse_topology, topology_devices


@pytest.mark.parametrize(
    ("name", "count"),
    [("v5e:1x1", 1), ("v5e:2x4", 8), ("v5e:16x16", 256), ("v4:2x2x1", 4), ("v5p:4x8x8", 256), ("v6e:4x4", 16)],
)
def test_a_topology_is_read(name, count):
    topology = parse_topology(name)
    assert topology.chips == count
    assert topology.name == name
    assert topology.chip is CHIPS[name.partition(":")[0]]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("v5e-1", "v5e:1x1"),
        ("v5litepod-8", "v5e:2x4"),
        ("v6e-256", "v6e:16x16"),
        ("v4-16", "v4:2x2x2"),
        ("v4-512", "v4:4x8x8"),
        ("v5p-1536", "v5p:8x8x12"),
    ],
)
def test_names_that_count_cores_are_read_too(name, shape):
    assert parse_topology(name) == parse_topology(shape)
    assert parse_topology(shape).cloud_name == name.replace("litepod", "e")


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("v5x:2x2", r"no TPU 'v5x'.*did you mean 'v5[ep]'"),
        ("v5e", r"such as v5e:4x4 or v4:2x2x1"),
        ("v5e-17", r"no slice of that size: use 1x1, 2x2"),
        ("v7-8", r"no TPU 'v7'"),
        ("v4-12", r"no slice of that size"),
        ("v5e:4xfour", r"such as v5e:4x4"),
        ("v5e:0x4", r"such as v5e:4x4"),
        ("v5e:2x2x1", r"slices of v5e have two dimensions"),
        ("v4:2x2", r"slices of v4 have three dimensions"),
        ("v5e:3x3", r"no such slice: use 1x1, 2x2, 2x4, 4x4"),
        ("v5e:32x32", r"no such slice"),  # libtpu would compile for it
        ("v4:4x8x4", r"multiples of 4 in rising order, up to 4096 chips"),
        ("v4:16x16x20", r"up to 4096 chips"),
    ],
)
def test_a_topology_that_does_not_exist_is_told(name, cure):
    with pytest.raises(ConfigError, match=cure):
        parse_topology(name)


def test_every_chip_has_room_and_a_ridge():
    """A slip of a power of ten would show: a chip computes 100 to 1000 operations in the time of one byte of HBM."""
    for chip in CHIPS.values():
        assert 15 * 2**30 < chip.usable_bytes <= chip.hbm_bytes < 100 * 2**30
        assert 100 < chip.peak_flops / chip.hbm_bandwidth < 1000
        assert 2 < chip.hbm_bandwidth / chip.interchip_bandwidth < 5


def test_libtpu_is_missing(monkeypatch):
    topology_devices.cache_clear()
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EffnetError, match=r"pip install 'effnet-jax\[tpu\]'"):
        topology_devices("v5e:2x2")


@pytest.mark.parametrize(
    ("outcome", "message"), [(RuntimeError("no\nmore"), "for v5e:2x4: no; "), (5, "5 devices for")]
)
def test_libtpu_refuses(monkeypatch, outcome, message):
    from jax.experimental import topologies

    class Description:
        devices = tuple(range(5))

    def refuse(*arguments, **options):
        if isinstance(outcome, Exception):
            raise outcome
        return Description()

    topology_devices.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(EffnetError, match=message) as caught:
        topology_devices("v5e:2x4")
    assert "pip install --upgrade 'effnet-jax[tpu]'" in str(caught.value)


@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:4x4", "v4:2x2x2", "v5p:2x2x1", "v6e:2x4"])
def test_a_device_for_each_chip(name, tpu_devices):
    topology_devices.cache_clear()
    before = dict(os.environ)
    assert len(topology_devices(name)) == parse_topology(name).chips
    assert dict(os.environ) == before  # which other processes of a test or a user inherit
