"""Room on a disk is asked for before something large is written."""

import collections
import shutil

import pytest

from effnet_jax.disk import check_space
from effnet_jax.errors import DiskError

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def nearly_full(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 3 * 10**6, 3 * 10**6))


def test_what_fits_is_no_matter(tmp_path, nearly_full):
    check_space(tmp_path / "not" / "yet" / "there", 10**6, "a checkpoint")


def test_too_little_room_is_told_with_both_numbers(tmp_path, nearly_full):
    with pytest.raises(DiskError, match=r"for a checkpoint: 51 MB are needed in .*run, and 3 MB are free"):
        check_space(tmp_path / "run", 50 * 10**6, "a checkpoint")
