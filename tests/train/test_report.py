import json
import math

import numpy as np
import pytest
from PIL import Image

from effnet_jax.train.curves import draw_curves
from effnet_jax.train.meter import Meter, duration
from effnet_jax.train.report import Report


def some_rows():
    rows = []
    for step in range(1, 9):
        place = {"step": step, "epoch": float(step), "phase": "head" if step < 5 else "blocks"}
        rows.append({**place, "split": "train", "loss": 2 / step, "accuracy": 1 - 1 / (step + 1)})
        rows.append({**place, "split": "validation", "loss": 2.2 / step, "accuracy": 0.9 - 0.9 / (step + 1)})
    return rows


def test_curves_show_both_splits_and_the_phases(tmp_path):
    def colours(rows):
        draw_curves(rows, tmp_path / "curves.png", title="a run")
        pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
        orange, blue, shade = (230, 159, 0), (0, 114, 178), (243, 243, 243)
        halves = np.split(pixels, [pixels.shape[1] // 2], axis=1)
        return [[(half == colour).all(-1).sum() for colour in (orange, blue, shade)] for half in halves]

    for orange, blue, shade in colours(some_rows()):  # loss on the left, accuracy on the right
        assert orange > 100 and blue > 100 and shade > 10_000
    only_train = [row for row in some_rows() if row["split"] == "train" and row["phase"] == "head"]
    for orange, blue, shade in colours(only_train):
        assert orange > 100 and blue == 0 and shade < 100


def test_a_resume_drops_what_will_be_logged_again_and_a_torn_line(tmp_path):
    report = Report(tmp_path)
    for step, split in ((1, "step"), (2, "step"), (2, "train"), (2, "test"), (3, "step")):
        report.record(step=step, epoch=step / 2, phase="head", split=split, loss=1.0)
    report.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "los')
    report = Report(tmp_path, step=2)
    report.record(step=3, epoch=1.5, phase="head", split="step", loss=0.5)
    report.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(1, "step"), (2, "step"), (2, "train"), (3, "step")]
    assert rows[-1]["loss"] == 0.5


def test_another_process_writes_nothing(tmp_path, capsys):
    report = Report(tmp_path, active=False)
    report.record(step=1, epoch=1.0, phase="head", split="train", loss=1.0)
    report.say("hello")
    report.draw(now=True)
    report.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_the_meter_sums_up_to_a_loss_that_is_no_number():
    meter, sums = Meter(batch_size=8, step=0), {}
    for step, loss in enumerate((1.0, 3.0, math.nan, 5.0), 1):
        meter.add(step, {"loss": np.float32(loss), "accuracy": np.float32(0.5)})
    rows = meter.collect(sums)
    assert [step for step, _ in rows] == [1, 2, 3] and math.isnan(rows[-1][1]["loss"])
    assert sums == {"loss": 4.0, "accuracy": 1.0, "steps": 2}
    assert meter.images_per_second > 0 and len(meter) == 0


def test_an_evaluation_does_not_count_for_the_speed_or_the_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    meter = Meter(batch_size=8, step=0)
    for step in (1, 2):
        meter.add(step, {"loss": np.float32(1), "accuracy": np.float32(1)})
        clock[0] += 1
    meter.collect({})
    with meter.pause():
        clock[0] += 100
        assert meter.images_per_second == 4 and meter.time_left(12) == "20 s left"
    assert meter.images_per_second == 4


@pytest.mark.parametrize(("seconds", "text"), [(48.4, "48 s"), (185, "3 min 05 s"), (7810, "2 h 10 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
