"""metrics.jsonl and TensorBoard's events: the same points, in each of them once."""

import json
import struct

from tensorboardX.proto.event_pb2 import Event

from effnet_jax import files
from effnet_jax.train.rundir.log import Log, read_rows, rows_until


def events(folder):
    """(step, tag, value) of everything in TensorBoard's files, as a reader of TFRecords finds it."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event = Event.FromString(data[start + 12 : start + 12 + length])
            values = [value for value in event.summary.value if value.tag.endswith("/loss")]
            found += [(event.step, value.tag, value.simple_value) for value in values]
            start += 16 + length
    return found


def points(rows):
    """What TensorBoard must show of rows."""
    return [(row["step"], f"{row['split']}/loss", row["loss"]) for row in rows]


def write(log, *places):
    for step, split in places:
        log.record(step=step, epoch=step / 2, phase="head", split=split, loss=1.0 * step, accuracy=0.5)


def test_a_resume_keeps_the_rows_of_its_checkpoint_in_both_places(tmp_path):
    log = Log(files.as_path(tmp_path))
    write(log, (1, "step"), (2, "step"), (2, "train"), (2, "test"), (3, "step"))
    assert log.count == 5 and points(read_rows(tmp_path)) == events(tmp_path)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "los')
    assert len(read_rows(tmp_path)) == 5  # a line that a kill cut off is none

    again = Log(files.as_path(tmp_path), read_rows(tmp_path)[:3])
    assert again.count == 3
    write(again, (3, "step"), (4, "validation"))
    again.close()
    rows = read_rows(tmp_path)
    assert [(row["step"], row["split"]) for row in rows] == [
        (1, "step"), (2, "step"), (2, "train"), (3, "step"), (4, "validation"),
    ]  # fmt: skip
    assert points(rows) == events(tmp_path)


def test_checkpoints_that_count_no_rows_go_by_the_step(tmp_path):
    log = Log(files.as_path(tmp_path))
    write(log, (1, "step"), (2, "train"), (2, "validation"), (2, "test"), (3, "step"))
    log.close()
    kept = rows_until(read_rows(tmp_path), 2)
    assert [(row["step"], row["split"]) for row in kept] == [(1, "step"), (2, "train"), (2, "validation")]


def test_what_is_no_number_is_null_for_every_reader_of_json(tmp_path):
    log = Log(files.as_path(tmp_path))
    log.record(step=1, epoch=1.0, phase="head", split="train", loss=float("nan"), accuracy=float("inf"))
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    strict = json.loads(text, parse_constant=lambda name: 1 / 0)
    assert strict["loss"] is None and strict["accuracy"] is None


def test_a_picture_that_cannot_be_drawn_ends_no_run(tmp_path):
    log = Log(files.as_path(tmp_path))
    log.record(step=1, epoch=1.0, phase="head", split="train", loss=1.0)  # a row without its accuracy
    assert "curves.png was not drawn" in log.draw(now=True)
    log.close()


def test_another_process_writes_nothing(tmp_path):
    log = Log(files.as_path(tmp_path), active=False)
    write(log, (1, "train"))
    log.flush()
    assert log.draw(now=True) is None
    log.close()
    assert list(tmp_path.iterdir()) == []
