"""Archives that lie about their size, or unpack to more than there is."""

import io
import resource
import tarfile
import zipfile

import numpy as np
import pytest

from effnet_jax.archives import ArchiveError, Npz
from effnet_jax.data.sources import open_dataset
from effnet_jax.errors import CheckpointError, DataError
from effnet_jax.weights.readers import open_checkpoint


def header(shape, dtype="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((10**6, 300, 300, 3)) + bytes(100), "says that it has 270,000,000,000 bytes, and there are 100"),
        (header((2**40,), "<U0"), "cannot have the shape"),
        (header((-1, 5)) + bytes(100), "cannot have the shape"),
        (header((5,), "|O") + bytes(100), "Python objects"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "damaged"),
    ],
)
def test_headers_that_lie(tmp_path, content, message):
    path = npz(tmp_path / "data.npz", image=content, label=header((5,)) + bytes(5))
    with Npz(path) as file, pytest.raises(ArchiveError, match=message):
        file.read("image")
    with pytest.raises(DataError, match=rf"data\.npz cannot be read \(.*{message}"):
        open_dataset({"name": str(path)}, ["train"]).split("train")
    with pytest.raises(CheckpointError, match=rf"(?s)data\.npz.*{message}"), open_checkpoint(path) as checkpoint:
        checkpoint.read("image")


def test_an_array_beyond_the_memory_is_told_before_it_is_unpacked(tmp_path, monkeypatch):
    path = npz(tmp_path / "data.npz", image=header((2**20,)) + bytes(2**20))
    with Npz(path) as file:
        assert not file.read("image").any()
        monkeypatch.setattr("effnet_jax.archives.free_memory", lambda: 2**19)
        with pytest.raises(ArchiveError, match="it takes 0.0 GiB, and 0.0 GiB of memory are free"):
            file.read("image")


def test_a_changed_byte_is_found(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, a=np.arange(1000))
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with Npz(path) as file, pytest.raises(ArchiveError, match="a is damaged: Bad CRC-32"):
        file.read("a")


def test_orders_and_byte_orders(tmp_path):
    arrays = {"f": np.asfortranarray(np.arange(6).reshape(2, 3)), "big": np.arange(3, dtype=">i4"), "s": np.array("x")}
    np.savez_compressed(tmp_path / "data.npz", empty=np.zeros((0, 3)), **arrays)
    with Npz(tmp_path / "data.npz") as file:
        for name, array in arrays.items():
            assert np.array_equal(file.read(name), array) and file.header(name) == (array.shape, array.dtype)
        assert file.read("empty").shape == (0, 3)


def test_archives_of_weights_that_unpack_to_many_times_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr("effnet_jax.archives._LEAST_UNPACKED", 2**20)
    bomb = bytes(2**25)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("model.ckpt.data-00000-of-00001")
        info.size = len(bomb)
        archive.addfile(info, io.BytesIO(bomb))
    with pytest.raises(CheckpointError, match="many times its size"):
        open_checkpoint(tmp_path / "bomb.tar.gz")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bomb)
    with pytest.raises(CheckpointError, match="many times its size"):
        open_checkpoint(tmp_path / "bomb.pth")


def fuzz(tmp_path, count):
    """Opens damaged `.npz` files; returns how many of them were read, each with the pixels that it had."""
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), np.uint8)
    path = tmp_path / "data.npz"
    originals = []
    for save in (np.savez, np.savez_compressed):
        save(path, x_train=images, y_train=np.arange(20) % 3, class_names=np.array(["a", "b", "c"]))
        originals.append(path.read_bytes())
    random, read = np.random.default_rng(0), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        data = bytearray(originals[number % 2])
        for place in random.integers(0, len(data), random.integers(1, 5)):
            data[place] = random.integers(256)
        if number % 5 == 0:
            data = data[: random.integers(len(data))]
        path.write_bytes(data)
        try:
            source = open_dataset({"name": str(path)}, ["train"]).split("train")
        except DataError:
            continue
        assert np.array_equal(source.images, images) and source.labels.tolist() == (np.arange(20) % 3).tolist()
        read += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB: half a GiB
    return read


def test_damaged_files_are_an_error_or_read_as_they_were(tmp_path):
    assert 0 < fuzz(tmp_path, 150) < 150


@pytest.mark.slow
def test_a_thousand_damaged_files(tmp_path):
    assert 0 < fuzz(tmp_path, 1000) < 1000
