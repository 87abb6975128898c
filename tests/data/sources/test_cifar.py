"""The CIFAR archives as published, in small."""

import io
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from effnet_jax.data.sources import open_source
from effnet_jax.data.sources.cifar import _unpickle
from effnet_jax.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
FINE = np.arange(24) % 6
COARSE = FINE // 2
NAMES = ["apple", "bear", "cup", "dinosaur", "elm", "fox"]
PLANES = IMAGES.transpose(0, 3, 1, 2).reshape(24, -1)  # channel by channel, as published


def files(form):
    """Contents of the archive `form` with 4 images a file."""
    parts = [slice(4 * i, 4 * i + 4) for i in range(6)]
    dump = lambda value: pickle.dumps(value, protocol=2)  # noqa: E731
    if form == "cifar-10-python":
        batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        content = {
            name: dump(
                {
                    b"data": PLANES[part],
                    b"labels": FINE[part].tolist(),
                    b"filenames": [f"i{j}.png".encode() for j in range(part.start, part.stop)],
                }
            )
            for name, part in zip(batches, parts, strict=True)
        }
        return content | {"batches.meta": dump({b"label_names": [name.encode() for name in NAMES]})}
    if form == "cifar-10-binary":
        batches = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        table = np.concatenate([FINE[:, None].astype(np.uint8), PLANES], axis=1)
        content = {name: table[part].tobytes() for name, part in zip(batches, parts, strict=True)}
        return content | {"batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}
    halves = (("train", slice(0, 20)), ("test", slice(20, 24)))
    if form == "cifar-100-python":
        content = {
            name: dump(
                {
                    b"data": PLANES[part],
                    b"fine_labels": FINE[part].tolist(),
                    b"coarse_labels": COARSE[part].tolist(),
                    b"filenames": [f"i{j}.png".encode() for j in range(part.start, part.stop)],
                }
            )
            for name, part in halves
        }
        return content | {"meta": dump({b"fine_label_names": NAMES, b"coarse_label_names": ["x", "y", "z"]})}
    table = np.concatenate([COARSE[:, None], FINE[:, None], PLANES], axis=1).astype(np.uint8)
    content = {f"{name}.bin": table[part].tobytes() for name, part in halves}
    return content | {"fine_label_names.txt": "\n".join(NAMES).encode(), "coarse_label_names.txt": b"x\ny\nz\n"}


def pack(path, content, folder="published/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


FORMS = ["cifar-10-python", "cifar-10-binary", "cifar-100-python", "cifar-100-binary"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same(tmp_path, form, packed):
    if packed:
        name = pack(tmp_path / f"{form}.tar.gz", files(form))
    else:
        name = str(tmp_path / form)
        os.mkdir(name)
        for file, data in files(form).items():
            (tmp_path / form / file).write_bytes(data)
    train, test = open_source({"name": name}, "train"), open_source({"name": name}, "test")
    assert np.array_equal(np.concatenate([train.images, test.images]), IMAGES)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), FINE)
    assert train.class_names == test.class_names == tuple(NAMES)
    assert train.fixed_shape == (32, 32, 3)
    assert "python" not in form or test[1]["id"] == "i21.png"
    assert np.array_equal(open_source({"name": name}, "train[75%:]").images, IMAGES[15:20])


class Foreign:
    """Makes a folder when it is unpickled by an unpickler that allows everything."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_with_foreign_objects_builds_nothing(tmp_path):
    never = str(tmp_path / "never")
    content = files("cifar-100-python") | {"meta": pickle.dumps({b"fine_label_names": Foreign(never)})}
    with pytest.raises(DataError, match=r"meta is not a CIFAR pickle \(it would build \w+\.mkdir\)"):
        open_source({"name": pack(tmp_path / "a.tar.gz", content)}, "train")
    assert not os.path.exists(never)


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("cifar-10-binary", {"data_batch_3.bin": None}, "looks like cifar-10-binary but lacks data_batch_3.bin"),
        ("cifar-100-binary", {"train.bin": b"short"}, "train.bin has 5 bytes, no multiple of 3074: it is cut off"),
        ("cifar-100-python", {"train": b"\x80\x02}q\x00."}, "train lacks 'data'"),
        ("cifar-100-python", {"train": b"garbage"}, "train is not a CIFAR pickle"),
        ("cifar-100-python", {"test": pickle.dumps([1])}, "it holds a list"),
        ("cifar-10-binary", {"batches.meta.txt": b"apple\nbear\n"}, r"label\(s\) are outside 0..1"),
    ],
)
def test_damaged_archives(tmp_path, form, change, message):
    content = {name: data for name, data in (files(form) | change).items() if data is not None}
    with pytest.raises(DataError, match=message):
        open_source({"name": pack(tmp_path / "a.tar.gz", content)}, "train")


def test_cut_off_and_foreign_archives(tmp_path):
    path = tmp_path / "a.tar.gz"
    pack(path, files("cifar-100-python"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="damaged or incomplete archive .*download it again"):
        open_source({"name": str(path)}, "train")
    pack(path, {"readme.txt": b"hello"})
    with pytest.raises(DataError, match="none of the archives.*unpack an archive of an image folder"):
        open_source({"name": str(path)}, "train")
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        open_source({"name": str(path)}, "train")


OVER_ITS_OWN_BYTES = """
import pickle, sys
import numpy as np
from effnet_jax.data.sources.cifar import _unpickle
from effnet_jax.errors import DataError

class Call:
    def __init__(self, *what):
        self.what = what
    def __reduce__(self):
        return self.what

crash = Call(np.ndarray, ((1,), np.dtype("O"), b"AAAAAAAA"))
try:
    str(_unpickle(pickle.dumps({b"fine_label_names": crash}), "meta"))
except DataError as error:
    print(error)
"""


def test_an_array_of_objects_over_bytes_of_the_files_choice_is_refused():
    """NumPy's own constructor made one, and to look at it ended Python with SIGSEGV."""
    done = subprocess.run([sys.executable, "-c", OVER_ITS_OWN_BYTES], capture_output=True, text=True)
    assert done.returncode == 0 and "is not a CIFAR pickle" in done.stdout, done


class Call:
    """Is pickled as a call."""

    def __init__(self, *what):
        self.what = what

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    "state",
    [
        (1, (1 << 40,), np.dtype("u1"), False, b"x"),  # a shape that its bytes do not have
        (1, (2, -1), np.dtype("u1"), False, b"xx"),
        (1, (1,), np.dtype("O"), False, [1]),
        (1, (8,), np.dtype("f8"), False, b"x" * 64),
        (1, (1,), 5, False, b"x"),
    ],
)
def test_arrays_that_lie_are_refused(state):
    array = Call(np.zeros(3, np.uint8).__reduce__()[0], (np.ndarray, (0,), b"b"), state)
    with pytest.raises(DataError, match="is not a CIFAR pickle"):
        _unpickle(pickle.dumps({b"data": array}, 2), "train")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_protocol_are_read(protocol, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8), order=order)
    read = _unpickle(pickle.dumps({b"data": array, "labels": np.arange(5, dtype=">i4")}, protocol), "train")
    assert np.array_equal(read["data"].values, array)
    assert read["labels"].values.tolist() == [0, 1, 2, 3, 4]


def test_lists_that_unfold_without_end_are_refused(tmp_path):
    laughs = [1] * 10
    for _ in range(30):
        laughs = [laughs] * 10
    for key in (b"fine_labels", b"filenames"):
        batch = pickle.loads(files("cifar-100-python")["train"], encoding="bytes")
        batch[key] = laughs
        path = pack(tmp_path / "a.tar.gz", files("cifar-100-python") | {"train": pickle.dumps(batch)})
        if key == b"fine_labels":
            with pytest.raises(DataError, match="holds other things than numbers"):
                open_source({"name": path}, "train")
        else:
            assert open_source({"name": path}, "train").example_id(0) == "cifar-100-python/train/0"


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_pickles_with_flipped_bytes_are_refused_or_read(count):
    whole = files("cifar-100-python")["train"]
    random = np.random.default_rng(count)
    refused = 0
    for _ in range(count):
        damaged = bytearray(whole)
        for position in random.integers(0, len(whole), random.integers(1, 9)):
            damaged[position] = random.integers(256)
        try:
            _unpickle(bytes(damaged), "train")
        except DataError:
            refused += 1
    assert 0 < refused < count


@pytest.mark.parametrize("ending", ["gz", "xz", "bz2"])
def test_a_changed_bit_in_a_compressed_archive_is_found(tmp_path, ending):
    """Compression has its checksum at the very end, where a reader of the archive need not come."""
    path = tmp_path / f"cifar-100-python.tar.{ending}"
    with tarfile.open(path, f"w:{ending}") as archive:
        for name, content in files("cifar-100-python").items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    whole = path.read_bytes()
    assert len(open_source({"name": str(path)}, "train")) == 20
    random = np.random.default_rng(0)
    for position in random.integers(len(whole) // 4, 3 * len(whole) // 4, 20):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            open_source({"name": str(path)}, "train")
