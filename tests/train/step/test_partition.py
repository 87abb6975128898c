"""Which rows a process loads, and where they come to lie."""

import functools
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effnet_jax.errors import ConfigError
from effnet_jax.train.step.partition import check_cut, make_partition
from effnet_jax.train.step.state import create_state

ORDERS = {
    "in order": [0, 1, 2, 3, 4, 5, 6, 7],
    "reversed": [7, 6, 5, 4, 3, 2, 1, 0],
    "along a torus": [0, 1, 6, 7, 5, 4, 3, 2],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_batch_keeps_its_order_in_any_order_of_the_mesh(order):
    partition = make_partition("pjit", [jax.devices()[number] for number in order])
    batch = {"index": np.arange(16), "image": np.random.default_rng(0).integers(0, 256, (16, 2, 2, 3), np.uint8)}
    assert partition.rows(16).tolist() == list(range(16))
    placed = partition.place_batch(batch)
    for key, value in placed.items():
        assert np.array_equal(value, batch[key])
        assert [shard.device for shard in value.addressable_shards] and len(value.addressable_shards) == 8
    first = next(shard for shard in placed["index"].addressable_shards if shard.index[0].start in (0, None))
    assert first.device == jax.devices()[order[0]]


def test_rows_come_out_whole_and_in_order_whatever_device_made_them():
    partition = make_partition("pjit", [jax.devices()[number] for number in ORDERS["along a torus"]], fsdp=2)
    batch = partition.place_batch({"value": np.arange(32.0).reshape(16, 2)})
    scaled = partition.compile_rows(lambda factor, rows: {"twice": factor * rows["value"]})(2.0, batch)["twice"]
    assert scaled.is_fully_replicated
    assert np.array_equal(scaled, 2 * np.arange(32.0).reshape(16, 2))


def test_a_sharded_state_is_on_no_device_as_a_whole():
    partition = make_partition("pjit", fsdp=4)
    create = functools.partial(create_state, optimizer=optax.adam(1e-3), ema=True)
    values = {"params": {"a": {"kernel": np.ones((3, 3, 16, 40), np.float32), "bias": np.ones(40, np.float32)}}}
    state = partition.make_state(create, partition.place_state({**values, "batch_stats": {}}))
    cut = {"a": state.params["a"]["kernel"], "mu": state.opt_state[0].mu["a"]["kernel"],
           "ema": state.ema["params"]["a"]["kernel"]}  # fmt: skip
    for name, kernel in cut.items():
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 16, 10)}, name
    assert state.params["a"]["bias"].sharding.is_fully_replicated  # small
    # Elsewhere it is whole again, and back, to the bit.
    for other in (make_partition("pjit", jax.devices()[:1]), make_partition("pjit", fsdp=2, sharded="optimizer")):
        there = other.place_state(state)
        back = partition.place_state(there)
        for old, moved, new in zip(*map(jax.tree.leaves, (state, there, back)), strict=True):
            assert np.array_equal(old, moved) and np.array_equal(old, new)
            assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
    assert there.params["a"]["kernel"].sharding.is_fully_replicated
    assert not there.opt_state[0].nu["a"]["kernel"].sharding.is_fully_replicated


def test_a_state_that_fsdp_leaves_whole_is_refused():
    shapes = jax.eval_shape(lambda: {"kernel": jnp.zeros((3, 3, 1, 24)), "wide": jnp.zeros((1, 1, 96, 48))})
    check_cut(make_partition("pjit", fsdp=8), shapes)
    with pytest.raises(ConfigError, match=r"partition.fsdp=5 divides 0% of the parameters.*set it to 1"):
        check_cut(make_partition("pjit", jax.devices()[:5], fsdp=5), shapes)


# Two processes of two devices; the mesh has the devices of the first at positions 0 and 3.
SCRIPT = """
import sys
import jax
import numpy as np
from effnet_jax.hosts import join
from effnet_jax.errors import ConfigError
from effnet_jax.train.step.partition import check_cut, make_partition

join(sys.argv[2], 2, int(sys.argv[1]))
mine, others = jax.devices()[:2], jax.devices()[2:]
partition = make_partition("pjit", [mine[0], *others, mine[1]])
rows = partition.rows(8)
values = 10 * np.arange(8)
placed = partition.place_batch({"value": values[rows]})["value"]
for shard in placed.addressable_shards:
    assert np.array_equal(shard.data, values[shard.index]), shard
total = jax.jit(lambda value: (value * np.arange(8)).sum(), out_shardings=partition.replicated)(placed)
doubled = partition.compile_rows(lambda factor, batch: batch["value"] * factor)(np.int64(2), {"value": placed})
assert np.asarray(doubled).tolist() == (2 * values).tolist()
print(rows.tolist(), int(total))
"""


def test_processes_load_the_rows_that_their_devices_hold():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"}
    started = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(number), address], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert [shown.splitlines()[-1] for shown, _ in outputs] == ["[0, 1, 6, 7] 1400", "[2, 3, 4, 5] 1400"]
