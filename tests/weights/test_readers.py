"""Opening weights: every kind that is known, and what a wrong path or archive is told."""

import errno
import gzip
import io
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from effnet_jax import archives
from effnet_jax.errors import CheckpointError
from effnet_jax.weights.readers import open_checkpoint
from tests.disk import failing_disk


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "tiny_ckpt" / "saver", tmp_path / "ckpt"))


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """An empty folder that temporary files go to."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.mark.parametrize(
    "name", ["", "model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "model.ckpt.meta"]
)
def test_a_checkpoint_by_any_of_its_names(folder, name):
    (folder / "model.ckpt.meta").touch()
    with open_checkpoint(folder / name) as checkpoint:
        assert checkpoint.read("global_step") == 218949
        assert set(checkpoint.sha256()) == {"model.ckpt.index", "model.ckpt.data-00000-of-00001"}


def test_a_folder_whose_checkpoint_file_names_another_machines_path(folder):
    for file in list(folder.glob("model.ckpt.*")):
        shutil.copy(file, file.with_name(file.name.replace("model.ckpt", "older.ckpt")))
    (folder / "checkpoint").write_text('model_checkpoint_path: "/cns/home/someone/model.ckpt"\n')
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.source.name == "model.ckpt"
    (folder / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match=r"2 checkpoints: name one of model\.ckpt, older\.ckpt"):
        open_checkpoint(folder)


def test_paths_that_hold_nothing(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"did you mean 'model\.ckpt\.index'"):
        open_checkpoint(folder / "modle.ckpt.indx")
    with pytest.raises(CheckpointError, match=r"no file, folder or checkpoint .*give a checkpoint's prefix"):
        open_checkpoint(tmp_path / "nowhere" / "model.ckpt")
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="of no known kind"):
        open_checkpoint(tmp_path / "weights.onnx")
    (tmp_path / "empty" / "metadata.json").touch()
    with pytest.raises(CheckpointError, match="a weights dir already"):
        open_checkpoint(tmp_path / "empty")


def make_archive(path: Path, members: dict[str, Path | bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            data = content if isinstance(content, bytes) else content.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_published_archive_as_it_is(folder, tmp_path, scratch):
    members: dict = {f"noisy-student-efficientnet-b1/{file.name}": file for file in folder.iterdir()}
    members["noisy-student-efficientnet-b1/._model.ckpt.index"] = b"left by a Mac"
    path = make_archive(tmp_path / "noisy_student_efficientnet-b1.tar.gz", members)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("global_step") == 218949
        assert list(checkpoint.sha256()) == [path.name]
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "members, message",
    [
        ({"readme.txt": b"hello"}, r"no checkpoint \(no \*\.index\) but readme\.txt"),
        ({}, "no checkpoint .* but no file at all"),
        ({"a/m.index": b"", "b/m.index": b""}, "2 checkpoints: unpack it and name one of a/m, b/m"),
        ({"../m.index": b""}, r"a path out of the archive, '\.\./m\.index'"),
        ({"a/../../m.index": b""}, "a path out of the archive"),
        ({"/tmp/m.index": b""}, "a path out of the archive"),
        ({"a": link("a/m.index", tarfile.SYMTYPE)}, "a link or device"),
        ({"a": link("a/m.index", tarfile.LNKTYPE)}, "a link or device"),
    ],
)
def test_bad_archives(tmp_path, scratch, members, message):
    path = make_archive(tmp_path / "weights.tar.gz", members)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)
    assert not list(scratch.iterdir())
    assert not (tmp_path / "m.index").exists()


def test_truncated_and_foreign_archives(folder, tmp_path, scratch):
    path = make_archive(tmp_path / "w.tar.gz", {file.name: file for file in folder.iterdir()})
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        open_checkpoint(path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(CheckpointError, match=r"archive .* is damaged"):
        open_checkpoint(path)
    assert not list(scratch.iterdir())


def test_npz(tmp_path):
    arrays = {"m/stem/conv2d/kernel": np.arange(6, dtype=">f4").reshape(2, 3), "global_step": np.array(3)}
    np.savez(tmp_path / "w.npz", **arrays)
    with open_checkpoint(tmp_path / "w.npz") as checkpoint:
        assert checkpoint.entries["m/stem/conv2d/kernel"].shape == (2, 3)
        kernel = checkpoint.read("m/stem/conv2d/kernel")
        assert kernel.dtype.isnative
        np.testing.assert_array_equal(kernel, arrays["m/stem/conv2d/kernel"])


def test_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="a: it holds Python objects"):
        open_checkpoint(tmp_path / "w.npz")


def test_damaged_npz(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.zeros(1000, np.float32))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("a.npy").header_offset
    data = bytearray(path.read_bytes())
    data[start + 1000] ^= 1
    path.write_bytes(data)
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="a is damaged"):
        checkpoint.read("a")
    path.write_bytes(data[:500])
    with pytest.raises(CheckpointError, match=r"no \.npz, or damaged"):
        open_checkpoint(path)


def test_an_archive_with_a_file_twice(tmp_path):
    with tarfile.open(tmp_path / "w.tar.gz", "w:gz") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("m/model.ckpt.index")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(CheckpointError, match="holds 'm/model.ckpt.index' twice"):
        open_checkpoint(tmp_path / "w.tar.gz")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_archives(folder, tmp_path, scratch, ending, count):
    """An error, or the numbers that the archive held; nothing is left behind."""
    path = tmp_path / f"w{ending}"
    with tarfile.open(path, "w:gz" if ending == ".tar.gz" else "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"m/{file.name}")
    with open_checkpoint(path) as checkpoint:
        known = {name: checkpoint.read(name) for name in checkpoint.entries}
    data, random, read = path.read_bytes(), np.random.default_rng(0), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        content = bytearray(data)
        for place in random.integers(len(data), size=random.integers(1, 4)):
            content[place] = random.integers(256)
        path.write_bytes(content[: random.integers(len(content))] if number % 10 == 0 else content)
        try:
            with open_checkpoint(path) as checkpoint:
                found = {name: checkpoint.read(name) for name in checkpoint.entries}
        except CheckpointError:
            continue
        finally:
            assert not list(scratch.iterdir())
        read += 1
        assert found.keys() == known.keys()
        for name, array in known.items():
            np.testing.assert_array_equal(found[name], array)
    assert read < count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def bomb(kind: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a")
    info.type = {"attributes": tarfile.XHDTYPE, "name": tarfile.GNUTYPE_LONGNAME, "file": tarfile.REGTYPE}[kind]
    info.size = 8 * 2**20
    return info


@pytest.mark.parametrize("kind", ["attributes", "name", "file"])
def test_an_archive_that_unpacks_to_many_times_its_size(tmp_path, scratch, monkeypatch, kind):
    """Also in what is no member: tarfile takes names and attributes into memory whole."""
    monkeypatch.setattr(archives, "_LEAST_UNPACKED", 2**20)
    path = tmp_path / "w.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        info = bomb(kind)
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(info.size + 1024))
    with pytest.raises(CheckpointError, match=r"no published checkpoint \(it unpacks to many times its size\)"):
        open_checkpoint(path)
    assert not list(scratch.iterdir())


def test_an_archive_of_many_files(tmp_path, scratch):
    path = tmp_path / "w.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT) * 10_001 + bytes(1024))
    with pytest.raises(CheckpointError, match="more than 10,000 files"):
        open_checkpoint(path)


def test_npz_that_unpacks_to_many_times_its_size(tmp_path, monkeypatch):
    """In an array that no network takes: an optimizer's, of which only the checksum is wanted."""
    monkeypatch.setattr(archives, "_LEAST_UNPACKED", 2**20)
    np.savez_compressed(tmp_path / "w.npz", **{"m/stem/conv2d/kernel/RMSProp": np.zeros(2**21, np.float32)})
    with pytest.raises(CheckpointError, match="unpacks to many times its size"):
        open_checkpoint(tmp_path / "w.npz")


FULL = """
import sys
from effnet_jax.errors import CheckpointError
from effnet_jax.weights.readers import open_checkpoint
try:
    open_checkpoint(sys.argv[1])
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_for_temporary_files(folder, tmp_path):
    path = make_archive(tmp_path / "w.tar.gz", {file.name: file for file in folder.iterdir()})
    (tmp_path / "temporary").mkdir()
    disk = failing_disk(tmp_path, "/effnet_jax-", calls="write", error=errno.ENOSPC)
    place = {"TMPDIR": str(tmp_path / "temporary")}
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **disk, **place})
    assert f"no space left in {tmp_path / 'temporary'} to unpack {path}: free some, or set TMPDIR" in done.stdout
    assert not list((tmp_path / "temporary").iterdir())


def test_what_is_no_file_and_could_be_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"gs://bucket/efficientnet-b0 is an address: download it"):
        open_checkpoint("gs://bucket/efficientnet-b0")
    with pytest.raises(CheckpointError, match="noisy_student_b1 need no porting: .* effnet_jax.weights get noisy_stud"):
        open_checkpoint("tf_efficientnet_b1_ns")
