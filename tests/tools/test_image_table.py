"""The table of image files: every kind is read or refused as it says, with pixels as near to Pillow's as it says."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from effnet_jax.data.decode import decode_image
from effnet_jax.errors import DataError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "image_table.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("image_table", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["image_table"] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


TABLE = load_tool()
ROWS = TABLE.rows()


def test_the_table_is_long_enough():
    assert len(ROWS) >= 90 and sum(len(row.files) for row in ROWS) >= 150
    assert sum(len(data) for row in ROWS for data in row.files) < 1 << 20


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.form}, {row.what}" for row in ROWS])
def test_read_or_refused(row):
    for data in row.files:
        if row.refused:
            with pytest.raises(DataError, match=row.refused) as error:
                decode_image(data, name="holiday.jpg")
            assert str(error.value).startswith("holiday.jpg ")
        elif row.near is None:
            decode_image(data)
        else:
            difference = TABLE.difference(data)
            assert difference is not None and difference <= row.near


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WebP", "TIFF", "AVIF"])
def test_all_orientations_come_out_upright(form):
    """Against the picture itself, turned as the standard says, and not against Pillow's reading of the tag."""
    files = next((row.files for row in ROWS if row.form == form and row.what.endswith("orientation 1 to 8")), None)
    if files is None:
        pytest.skip(f"this Pillow has no {form}")
    upright = [
        lambda x: x,
        np.fliplr,
        lambda x: np.rot90(x, 2),
        np.flipud,
        lambda x: x.swapaxes(0, 1),
        lambda x: np.rot90(x, -1),
        lambda x: np.rot90(x.swapaxes(0, 1), 2),
        np.rot90,
    ]
    for turn, data in zip(upright, files, strict=True):
        expected = turn(np.asarray(TABLE.picture())).astype(int)
        image = decode_image(data)
        assert image.shape == expected.shape
        assert np.abs(image - expected).mean() < (0.1 if form in ("PNG", "TIFF", "WebP") else 6)


def test_the_command_prints_what_the_docs_hold(monkeypatch):
    docs = (TOOL.parents[1] / "docs" / "images.md").read_text()
    monkeypatch.setattr(TABLE, "difference", lambda data: 0)
    for row in ROWS:
        assert f"| {row.form} | {row.what} | {'no: ' if row.refused else 'yes'}" in docs
    assert TABLE.line(ROWS[0]) == "| JPEG | 8 bits, 4:4:4 | yes | 0 |"


@pytest.mark.filterwarnings("ignore")  # Pillow's, of metadata that are cut off
@pytest.mark.parametrize("row", [row for row in ROWS if not row.refused], ids=lambda row: f"{row.form}, {row.what}")
def test_wherever_it_is_cut_off_it_is_refused_or_whole(row):
    data = row.files[0]
    whole = decode_image(data)
    for cut in {*range(1, len(data), max(1, len(data) // 25)), *range(max(1, len(data) - 6), len(data))}:
        try:
            image = decode_image(data[:cut])
        except DataError:
            continue
        if row.what == "as text":  # of the last number, digits may be missing: 1 for 118
            assert cut > len(data) - 4
            image[-1, -1] = whole[-1, -1]
        assert np.array_equal(image, whole), cut
