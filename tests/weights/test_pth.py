"""PyTorch files without PyTorch: tensors come out right, and nothing else comes out at all."""

import collections
import hashlib
import io
import pickle
import resource
import shutil
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from effnet_jax.errors import CheckpointError
from effnet_jax.weights.pth import TorchFile


class FloatStorage:
    """Stands for torch.FloatStorage in a pickle."""


def _rebuild_tensor_v2(*arguments):
    raise AssertionError("called at reading")


class FakeTensor:
    def __init__(self, key: str, array: np.ndarray, strides: tuple[int, ...] | None = None) -> None:
        self.key, self.array, self.shape = key, array, array.shape
        self.strides = strides or tuple(stride // 4 for stride in array.strides)

    def __reduce__(self):
        storage = ("storage", FloatStorage, self.key, "cpu", self.array.size)
        hooks: collections.OrderedDict = collections.OrderedDict()
        return _rebuild_tensor_v2, (Persistent(storage), 0, self.shape, self.strides, False, hooks)


class Persistent:
    def __init__(self, pid: tuple) -> None:
        self.pid = pid


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Persistent) else None


@pytest.fixture
def dumps(monkeypatch):
    """A function that pickles as torch.save does."""
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch._utils", types.ModuleType("torch._utils"))
    for module, item in (("torch", FloatStorage), ("torch._utils", _rebuild_tensor_v2)):
        monkeypatch.setattr(item, "__module__", module)
        setattr(sys.modules[module], item.__name__, item)

    def dump(state) -> bytes:
        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump(state)
        return buffer.getvalue()

    return dump


def write_zip(path: Path, pickled: bytes, storages: dict[str, bytes], byteorder: bytes = b"little") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)
    return path


def write_legacy(path: Path, pickled: bytes, storages: dict[str, bytes]) -> Path:
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    parts = [pickle.dumps(part, 2) for part in head] + [pickled, pickle.dumps(list(storages), 2)]
    parts += [struct.pack("<q", len(data) // 4) + data for data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.float32)}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_both_formats_and_strides(tmp_path, dumps, write):
    state = collections.OrderedDict(
        a=FakeTensor("0", ARRAYS["a"]), b=FakeTensor("1", ARRAYS["b"]), t=FakeTensor("0", ARRAYS["a"].T, (1, 3))
    )
    state._metadata = {"version": 1}  # torch keeps such an attribute
    path = write(tmp_path / "m.pth", dumps(state), {"0": ARRAYS["a"].tobytes(), "1": ARRAYS["b"].tobytes()})
    with TorchFile(path) as file:
        np.testing.assert_array_equal(file.read("a"), ARRAYS["a"])
        np.testing.assert_array_equal(file.read("t"), ARRAYS["a"].T)
        assert file.read("b") == 7 and file.entries["b"].shape == ()


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/effnet_jax_was_here"),)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_foreign_objects_are_refused_by_name(tmp_path, dumps, write):
    path = write(tmp_path / "m.pth", dumps({"a": FakeTensor("0", ARRAYS["a"]), "b": Evil()}), {"0": b""})
    with pytest.raises(CheckpointError, match=r"an object of .*(getattr|Path).*only a plain state dict is read"):
        TorchFile(path)
    assert not Path("/tmp/effnet_jax_was_here").exists()


@pytest.mark.parametrize(
    "state, message",
    [
        ([1, 2], "holds a list instead of a state dict"),
        ({"epoch": 3}, "epoch is a int instead of a tensor"),
        ({"state_dict": {"a": FakeTensor("0", ARRAYS["a"])}}, "state_dict is a dict instead of a tensor"),
    ],
)
def test_what_is_no_state_dict(tmp_path, dumps, state, message):
    path = write_zip(tmp_path / "m.pth", dumps(state), {"0": ARRAYS["a"].tobytes()})
    with pytest.raises(CheckpointError, match=message):
        TorchFile(path)


def test_damage_is_an_error(tmp_path, dumps):
    pickled, data = dumps({"a": FakeTensor("0", ARRAYS["a"])}), ARRAYS["a"].tobytes()
    for write in (write_zip, write_legacy):
        path = write(tmp_path / "m.pth", pickled, {"0": data[:-4]})
        with pytest.raises(CheckpointError, match=r"cut off|numbers instead"):
            TorchFile(path).read("a")
    whole = write_legacy(path, pickled, {"0": data}).read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="cut off"):
        TorchFile(path).read("a")
    path.write_bytes(whole[:60])
    with pytest.raises(CheckpointError, match="no PyTorch file, or damaged"):
        TorchFile(path)
    with pytest.raises(CheckpointError, match="big-endian"):
        TorchFile(write_zip(path, pickled, {"0": data}, byteorder=b"big"))
    far = FakeTensor("0", ARRAYS["a"], strides=(100, 1))
    with pytest.raises(CheckpointError, match="reaches beyond its storage"):
        TorchFile(write_zip(path, dumps({"a": far}), {"0": data})).read("a")
    vast = FakeTensor("0", ARRAYS["a"], strides=(0, 0))
    vast.shape = (10**6, 10**6)
    with pytest.raises(CheckpointError, match="reaches beyond its storage"):
        TorchFile(write_zip(path, dumps({"a": vast}), {"0": data})).read("a")
    write_zip(path, pickled, {"0": data})
    damaged = bytearray(path.read_bytes())
    damaged[damaged.find(data)] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="a is damaged"):
        TorchFile(path).read("a")


def test_the_digest_in_a_name_is_compared(tmp_path, dumps):
    path = write_legacy(tmp_path / "m.pth", dumps({"a": FakeTensor("0", ARRAYS["a"])}), {"0": ARRAYS["a"].tobytes()})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    with TorchFile(path.rename(tmp_path / f"net-{digest}.pth")) as file:
        file.read("a")
    wrong = Path(shutil.copy(tmp_path / f"net-{digest}.pth", tmp_path / "net-00000000.pth"))
    with pytest.raises(CheckpointError, match="its SHA-256 starts with 00000000"):
        TorchFile(wrong)


def test_a_flip_anywhere_in_lite0_is_an_error(lite0_pth, tmp_path):
    data = bytearray(lite0_pth.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / lite0_pth.name).write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: its name says"):
        TorchFile(tmp_path / lite0_pth.name)


def test_lite0_package(lite0_pth):
    with TorchFile(lite0_pth) as file:
        assert len(file.entries) == 296
        kernel = file.read("_conv_stem.weight")
        assert kernel.shape == (32, 3, 3, 3) and 0.05 < kernel.std() < 1


def test_a_damaged_compressed_member_is_an_error(tmp_path, dumps):
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dumps({"a": FakeTensor("0", ARRAYS["a"])}))
        archive.writestr("archive/data/0", ARRAYS["a"].tobytes())
    content = (tmp_path / "m.pth").read_bytes()
    start = content.index(b"archive/data/0") + 14
    for place in range(start, start + 12):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "m.pth").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            TorchFile(tmp_path / "m.pth").read("a")


def test_a_date_in_a_name_is_no_digest(tmp_path, dumps):
    path = write_legacy(
        tmp_path / "mine-20240115.pth", dumps({"a": FakeTensor("0", ARRAYS["a"])}), {"0": ARRAYS["a"].tobytes()}
    )
    with TorchFile(path) as file:
        assert np.array_equal(file.read("a"), ARRAYS["a"])


def damaged(data: bytes, places: np.ndarray, count: int):
    """Yields files with up to three bytes changed; each tenth is cut off as well."""
    random = np.random.default_rng(0)
    for number in range(count):
        content = bytearray(data)
        for place in random.choice(places, random.integers(1, 4)):
            content[place] = random.integers(256)
        yield bytes(content[: random.integers(len(content))] if number % 10 == 0 else content)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_structure(tmp_path, dumps, write, count):
    """An error, or the numbers that the file held. In the older format numbers themselves have no checksum."""
    random = np.random.default_rng(1)
    arrays = {
        f"blocks.{number}.conv.weight": random.random((number + 2, 5, 3, 3)).astype(np.float32) for number in range(8)
    }
    storages = {str(number): array.tobytes() for number, array in enumerate(arrays.values())}
    state = collections.OrderedDict((n, FakeTensor(str(k), a)) for k, (n, a) in enumerate(arrays.items()))
    data = write(tmp_path / "m.pth", dumps(state), storages).read_bytes()
    places = np.arange(len(data))
    for raw in storages.values() if write is write_legacy else ():
        begin = data.find(raw)
        places = places[(places < begin) | (places >= begin + len(raw))]
    read, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in damaged(data, places, count):
        (tmp_path / "m.pth").write_bytes(content)
        try:
            with TorchFile(tmp_path / "m.pth") as file:
                found = {name: file.read(name) for name in file.entries}
        except CheckpointError:
            continue
        read += 1
        for name in found.keys() & arrays.keys():  # other names and shapes are told by who ports them
            if found[name].shape == arrays[name].shape:
                np.testing.assert_array_equal(found[name], arrays[name])
    assert read < count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_a_place_in_memory_that_no_pickle_comes_to(tmp_path, dumps):
    """Five bytes for which the unpickler takes 64 GB."""
    pickled = dumps({"a": FakeTensor("0", ARRAYS["a"])}).replace(b"q\x00", b"r\xff\xff\xff\xff", 1)
    for write in (write_zip, write_legacy):
        path = write(tmp_path / "m.pth", pickled, {"0": ARRAYS["a"].tobytes()})
        with pytest.raises(CheckpointError, match="object 4294967295 after 2 steps"):
            TorchFile(path)


def test_a_view_with_overlaps_is_no_weight(tmp_path, dumps):
    tensor = FakeTensor("0", ARRAYS["a"], strides=(1, 1))
    path = write_zip(tmp_path / "m.pth", dumps({"a": tensor}), {"0": ARRAYS["a"].tobytes()})
    with TorchFile(path) as file, pytest.raises(CheckpointError, match=r"strides \(1, 1\), which are no weights"):
        file.read("a")


@pytest.mark.parametrize(
    "shape, strides", [((1,) * 70, (1,) * 70), ((0, 2**70), (1, 1)), ((0, 2**39, 2**39), (1,) * 3), ((1,), (2**70,))]
)
def test_a_shape_that_no_array_can_have(tmp_path, dumps, shape, strides):
    tensor = FakeTensor("0", ARRAYS["a"], strides=strides)
    tensor.shape = shape
    with pytest.raises(CheckpointError, match="no PyTorch file, or damaged"):
        TorchFile(write_zip(tmp_path / "m.pth", dumps({"a": tensor}), {"0": ARRAYS["a"].tobytes()}))
