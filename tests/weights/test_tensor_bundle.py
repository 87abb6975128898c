"""TensorFlow's checkpoint files: the right numbers or an error, never wrong numbers."""

import shutil
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from effnet_jax.errors import CheckpointError
from effnet_jax.weights.bundle_writer import write_bundle, write_table
from effnet_jax.weights.sorted_table import MAGIC, TableError, mask_crc, read_table, write_varint
from effnet_jax.weights.tensor_bundle import TensorBundle, read_index


def read_all(prefix: Path) -> dict[str, np.ndarray]:
    with TensorBundle(prefix) as bundle:
        return {name: bundle.read(name) for name in bundle.entries}


@pytest.fixture
def tiny(golden: Path, tmp_path: Path) -> Path:
    """A copy of TensorFlow's own small checkpoint, to be damaged; returns its prefix."""
    shutil.copytree(golden / "tiny_ckpt" / "saver", tmp_path / "tiny")
    return tmp_path / "tiny" / "model.ckpt"


@pytest.mark.parametrize("folder, count", [("saver", 53), ("sharded", 52)])
def test_equals_what_tensorflow_saved(golden, folder, count):
    found = read_all(golden / "tiny_ckpt" / folder / "model.ckpt")
    assert len(found) == count
    with np.load(golden / "tiny_ckpt" / "expected.npz") as expected:
        for name, array in found.items():
            wanted = expected[name]
            assert array.shape == wanted.shape, name
            if name != "other/bfloat16":  # NumPy stores it as float32
                assert array.dtype == wanted.dtype, name
            np.testing.assert_array_equal(array.astype(wanted.dtype), wanted, err_msg=name)


@pytest.mark.parametrize("folder", ["saver", "sharded"])
def test_equals_tensorflows_reader(golden, folder):
    tensorflow = pytest.importorskip("tensorflow")
    prefix = golden / "tiny_ckpt" / folder / "model.ckpt"
    reader = tensorflow.train.load_checkpoint(str(prefix))
    found = read_all(prefix)
    assert found.keys() == reader.get_variable_to_shape_map().keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, reader.get_tensor(name), err_msg=name)


def test_every_flipped_byte_is_an_error(tiny):
    index, data = tiny.with_name("model.ckpt.index"), tiny.with_name("model.ckpt.data-00000-of-00001")
    whole = {path: path.read_bytes() for path in (index, data)}
    random = np.random.default_rng(0)
    for attempt in range(1000):
        path = (index, data)[attempt % 2]
        damaged = bytearray(whole[path])
        position = random.integers(len(damaged))
        damaged[position] ^= random.integers(1, 256)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=path.name.replace(".", r"\.")):
            read_all(tiny)
        path.write_bytes(whole[path])
    assert read_all(tiny)


def test_every_byte_of_the_footer_is_checked(tiny):
    """The footer is the part of an index that no checksum covers."""
    index = tiny.with_name("model.ckpt.index")
    whole = index.read_bytes()
    for position in range(len(whole) - 48, len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            with pytest.raises(TableError):
                read_table(bytes(damaged))


@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("length", [0, 1, 47, 48, 1000, -1])
def test_a_truncated_file_is_an_error(tiny, ending, length):
    path = tiny.with_name(f"model.ckpt.{ending}")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="copy the checkpoint's files again"):
        read_all(tiny)


def test_data_longer_than_its_tensors_is_an_error(tiny):
    path = tiny.with_name("model.ckpt.data-00000-of-00001")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="29858 bytes instead of 29857"):
        TensorBundle(tiny)


def test_bytes_that_no_tensor_covers_are_an_error(tiny):
    index = tiny.with_name("model.ckpt.index")
    entries = read_table(index.read_bytes())
    del entries[b"efficientnet-b0/blocks_0/se/conv2d/kernel"]
    index.write_bytes(write_table(entries))
    with pytest.raises(CheckpointError, match="belong to no tensor"):
        TensorBundle(tiny)


def test_missing_files_are_named(golden, tmp_path):
    shutil.copytree(golden / "tiny_ckpt" / "sharded", tmp_path / "c")
    (tmp_path / "c" / "model.ckpt.data-00001-of-00002").unlink()
    with pytest.raises(CheckpointError, match="data-00001-of-00002 is missing: the checkpoint has 2 data files"):
        TensorBundle(tmp_path / "c" / "model.ckpt")
    (tmp_path / "c" / "model.ckpt.index").unlink()
    with pytest.raises(CheckpointError, match=r"index .*model\.ckpt\.index is missing"):
        TensorBundle(tmp_path / "c" / "model.ckpt")


def test_unknown_types_and_names_are_errors_when_read(tiny):
    index = tiny.with_name("model.ckpt.index")
    entries = read_table(index.read_bytes())
    name = b"other/uint8"
    assert entries[name].startswith(b"\x08\x04")
    entries[name] = b"\x08\x07" + entries[name][2:]  # type 7 is string
    index.write_bytes(write_table(entries))
    with TensorBundle(tiny) as bundle:
        with pytest.raises(CheckpointError, match="other/uint8 has TensorFlow's type 7"):
            bundle.read("other/uint8")
        bundle.verify("other/uint8")
        with pytest.raises(CheckpointError, match="no array named 'nonsense'"):
            bundle.read("nonsense")


def test_a_shape_that_does_not_fit_the_bytes_is_an_error(tiny):
    index = tiny.with_name("model.ckpt.index")
    entries = read_table(index.read_bytes())
    entries[b"global_step"] = entries[b"global_step"].replace(b"\x08\x09", b"\x08\x03", 1)  # int64 -> int32
    index.write_bytes(write_table(entries))
    with TensorBundle(tiny) as bundle, pytest.raises(CheckpointError, match="8 bytes instead of 4"):
        bundle.read("global_step")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("big_endian", [False, True])
def test_shards_and_byte_orders(tmp_path, shards, big_endian):
    arrays = {
        "a/float": np.arange(12, dtype=np.float32).reshape(3, 4),
        "a/empty": np.zeros((0, 3), np.float32),
        "b/long": np.array(-5, np.int64),
        "b/half": np.array([1.5, -2], np.float16),
        "c": np.array([True, False]),
    }
    write_bundle(tmp_path / "model", arrays, shards=shards, big_endian=big_endian)
    found = read_all(tmp_path / "model")
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        assert array.dtype == arrays[name].dtype and array.dtype.isnative
        np.testing.assert_array_equal(array, arrays[name])


def test_names_that_expand_without_a_bound_are_refused():
    """Each entry shares all of the name before it and adds a byte: the names' room grows with its square."""
    entry = b"".join(write_varint(number) for number in (0, 1, 0)) + b"a"
    block = entry + b"".join(write_varint(shared) + b"\1\0a" for shared in range(1, 20_000)) + bytes(4)
    handle = write_varint(0) + write_varint(len(block))
    index = b"\0\1" + write_varint(len(handle)) + b"b" + handle + bytes(4)
    data, handles = b"", b""
    for content in (block, index):
        handles = write_varint(len(data)) + write_varint(len(content))
        stored = content + b"\0"
        data += stored + struct.pack("<I", mask_crc(google_crc32c.value(stored)))
    with pytest.raises(TableError, match="names are longer"):
        read_table(data + (handles + handles).ljust(40, b"\0") + MAGIC)


def test_the_index_of_a_published_checkpoint(golden):
    entries = read_index(golden / "real_index" / "model.ckpt.index").entries
    assert len(entries) == 623
    assert entries["efficientnet-b0/stem/conv2d/kernel"] == ((3, 3, 3, 32), "float32")
    assert entries["global_step"] == ((), "int64")


def test_a_size_that_is_no_number(tiny):
    """Every checksum is right: a text stands where a tensor's shape has a number."""
    text = b"\x12\x05\x12\x03\x0a\x01x"
    Path(f"{tiny}.index").write_bytes(write_table({b"": b"\x08\x01", b"a": b"\x08\x01" + text}))
    with pytest.raises(CheckpointError, match="index .* is damaged"):
        TensorBundle(tiny)
