"""JSON lines and CSV: valid at any moment, and the same to the byte after any cut."""

import contextlib
import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest

from effnet_jax.errors import ConfigError, DataError, PathError, RunError
from effnet_jax.predict.growing import local_path
from effnet_jax.predict.outputs import TextOutput, Told, text_kind
from effnet_jax.predict.stream import Result

NAMES = ("cat", 'a "quoted", name', "dög")
IMAGES = ["a.jpg", 'odd "name",\nof two lines.jpg', "ü.jpg", "bad.jpg", "\udcff.jpg", "e\r.jpg", "f.jpg"]
RESULTS = [
    Result(None, 'it is "bad",\nreally') if path == "bad.jpg" else Result(np.float32([index, 3, 2]) / (index + 5))
    for index, path in enumerate(IMAGES)
]


def write(out, told, images=IMAGES, batch_size=2, stop=None):
    with contextlib.closing(TextOutput(out, told, images)) as output:
        output.resume(batch_size)
        for start in range(output.done, stop or len(images), batch_size):
            output.write(RESULTS[start : min(start + batch_size, len(images))])
    return output


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_that_was_cut_anywhere_ends_the_same(tmp_path, ending):
    told = Told(NAMES, 2, 0.5)
    whole = tmp_path / f"whole.{ending}"
    write(whole, told)
    content, out = whole.read_bytes(), tmp_path / f"cut.{ending}"
    sizes = random.Random(0).sample(range(len(content)), 40)
    for size in (0, 1, len(content) - 1, len(content), *sizes):
        out.write_bytes(content[:size])
        again = write(out, told)
        assert out.read_bytes() == content and again.done == 7 and again.bad == 1


def test_json_lines_say_what_was_found(tmp_path):
    write(tmp_path / "a.jsonl", Told(NAMES, 2, 0.5))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert lines[0] == {
        "image": "a.jpg",
        "class": 'a "quoted", name',
        "predictions": [
            {"class": 'a "quoted", name', "index": 1, "probability": 0.6},
            {"class": "dög", "index": 2, "probability": 0.4},
        ],
    }
    assert lines[3] == {"image": "bad.jpg", "error": 'it is "bad",\nreally'}
    assert lines[2]["class"] == "unknown" and lines[2]["predictions"][0]["probability"] == 0.428571
    assert "class" not in Told(NAMES, 2)("a.jpg", RESULTS[0])


def test_csv_has_a_row_for_each_image(tmp_path):
    write(tmp_path / "a.csv", Told(NAMES, 5, 0.5))
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [*IMAGES[:4], "\\xff.jpg", *IMAGES[5:]]
    assert rows[0]["class"] == rows[0]["class_1"] == 'a "quoted", name' and rows[0]["probability_3"] == "0.0"
    assert rows[3]["error"] == 'it is "bad",\nreally' and rows[3]["class_1"] == ""
    assert rows[2]["class"] == "unknown"


def test_images_that_came_since_are_added(tmp_path):
    told = Told(NAMES, 1)
    write(tmp_path / "whole.jsonl", told)
    write(tmp_path / "grown.jsonl", told, images=IMAGES[:5])
    write(tmp_path / "grown.jsonl", told)
    assert (tmp_path / "grown.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_is_not_gone_on_with(tmp_path):
    told, out = Told(NAMES, 2), tmp_path / "a.jsonl"
    write(out, told)
    content = out.read_bytes()
    for images in (IMAGES[::-1], IMAGES[:3]):
        with pytest.raises(DataError, match="which is not so in what is to be classified now"):
            write(out, told, images=images)
    assert out.read_bytes() == content  # nothing of it is lost
    for name, text in (("b.jsonl", "some notes\n"), ("c.csv", "other,columns\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="give another name, or remove it"):
            write(tmp_path / name, told)
        assert (tmp_path / name).read_text() == text


def test_two_do_not_write_one_file(tmp_path):
    first = TextOutput(tmp_path / "a.csv", Told(NAMES, 2), IMAGES)
    with pytest.raises(RunError, match="is being written by another process"):
        TextOutput(tmp_path / "a.csv", Told(NAMES, 2), IMAGES)
    first.close()
    write(tmp_path / "a.csv", Told(NAMES, 2))


def test_places_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"\.jsonl or \.csv"):
        text_kind(tmp_path / "a.txt")
    for place in ("gs://bucket/a.csv", "gs:/bucket/a.csv", "s3://bucket/a.csv"):
        with pytest.raises(PathError, match="gs://"):
            local_path(place)
    assert local_path("~/a.csv") == Path.home() / "a.csv"
    with pytest.raises(PathError, match="cannot be written: No such file"):
        write(tmp_path / "nowhere" / "a.csv", Told(NAMES, 2))
