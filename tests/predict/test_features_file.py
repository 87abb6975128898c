"""Files of features: what is in them, and the same after any cut."""

import contextlib
import json

import numpy as np
import pytest

from effnet_jax.errors import ConfigError, DataError
from effnet_jax.predict.features_file import FeaturesOutput, check_kind
from effnet_jax.predict.stream import Result
from tests.scripts import kill, start

IMAGES = ["a.jpg", "bad.jpg", "ü.jpg", "d.jpg", "e.jpg"]
VALUES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
RESULTS = [
    Result(None, "it is bad") if path == "bad.jpg" else Result(row) for path, row in zip(IMAGES, VALUES, strict=True)
]
GOOD = [0, 2, 3, 4]


def write(out, images=IMAGES, stop=None):
    with contextlib.closing(FeaturesOutput(out, 3, images)) as output:
        output.resume(2)
        for start in range(output.done, stop or len(images), 2):
            output.write(RESULTS[start : start + 2])
        if stop is None:
            output.finish()
    return output


def test_npz(tmp_path):
    output = write(tmp_path / "f.npz")
    assert (output.done, output.bad) == (5, 1)
    with np.load(tmp_path / "f.npz") as found:  # allow_pickle is off
        np.testing.assert_array_equal(found["features"], VALUES[GOOD])
        assert found["images"].tolist() == [IMAGES[index] for index in GOOD]
        assert found["unread_images"].tolist() == ["bad.jpg"] and found["errors"].tolist() == ["it is bad"]
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "f.parquet")
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["image"] == IMAGES and table["error"] == [None, "it is bad", None, None, None]
    assert table["features"][1] is None
    np.testing.assert_array_equal(np.float32([table["features"][index] for index in GOOD]), VALUES[GOOD])


def test_what_is_half_done_is_gone_on_with(tmp_path):
    write(tmp_path / "whole.npz")
    write(tmp_path / "all.npz", stop=5)
    rows, names = ((tmp_path / f"all.npz.{kind}").read_bytes() for kind in ("rows", "names"))
    for row_size in range(0, len(rows) + 1, 7):
        for name_size in range(0, len(names) + 1, 13):
            (tmp_path / "cut.npz.rows").write_bytes(rows[:row_size])
            (tmp_path / "cut.npz.names").write_bytes(names[:name_size])
            write(tmp_path / "cut.npz")
            assert (tmp_path / "cut.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_what_a_killed_process_left_of_the_file_takes_no_room(tmp_path):
    script = "with files.new_file(sys.argv[1]) as place:\n place.touch()\n print('begun', flush=True)\n time.sleep(60)"
    process = start(script, tmp_path / "f[1].npz")
    process.stdout.readline()
    kill(process)
    assert len(list(tmp_path.iterdir())) == 1  # hidden, and as large as what was written
    write(tmp_path / "f[1].npz")
    assert [path.name for path in tmp_path.iterdir()] == ["f[1].npz"]


def test_other_images_are_not_mixed_in(tmp_path):
    write(tmp_path / "f.npz", stop=4)
    with pytest.raises(DataError, match="which is not so"):
        write(tmp_path / "f.npz", images=["z.jpg", *IMAGES])
    assert json.loads((tmp_path / "f.npz.names").read_text().splitlines()[0]) == {"image": "a.jpg"}
    with pytest.raises(ConfigError, match=r"\.npz or \.parquet"):
        check_kind(tmp_path / "f.npy")


def test_none_can_be_read(tmp_path):
    output = FeaturesOutput(tmp_path / "f.npz", 3, ["bad.jpg"])
    output.write([RESULTS[1]])
    output.finish()
    with np.load(tmp_path / "f.npz") as found:
        assert found["features"].shape == (0, 3) and found["images"].shape == (0,)
