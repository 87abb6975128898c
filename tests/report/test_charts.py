"""Curves and reliability as SVG."""

import re

import numpy as np
import pytest

from effnet_jax.metrics.calibration import reliability
from effnet_jax.report.charts import curves, phase_spans, reliability_chart, ticks
from tests.report.made import story


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (46.3, 93, [50, 60, 70, 80, 90]), (0, 14, [0, 5, 10]), (2, 2, [2])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high)[: len(expected)] == pytest.approx(expected)
    assert len(ticks(low, high)) <= 6


def test_every_point_is_within_the_picture_and_what_is_no_number_is_left_out():
    rows = story().rows
    drawn = curves(rows)
    assert "NaN" not in drawn and "nan" not in drawn and "&lt;i&gt;blocks" in drawn
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', drawn)]
    assert len(places) == 25  # 6 epochs of 2 lines in 2 charts, and the accuracy of the test split
    assert all(46 <= x <= 510 and 26 <= y <= 246 for x, y in places)
    assert phase_spans(rows) == [("head", 0.0, 3.0), ("<i>blocks", 3.0, 6.0)]


def test_a_long_run_stays_small_and_an_empty_one_is_no_error():
    rows = [
        {"step": step, "epoch": float(step), "phase": "p", "split": "train", "loss": 1.0, "accuracy": 0.5}
        for step in range(1, 50_001)
    ]
    assert len(curves(rows)) < 30_000
    assert "no figures" in curves([])


def test_bars_of_reliability_say_what_they_count():
    random = np.random.default_rng(0)
    confidence = random.random(500)
    drawn = reliability_chart(reliability(confidence, random.random(500) < confidence))
    told = [int(count) for count in re.findall(r"(\d+) images", drawn)]
    assert sum(told) == 500 and len(told) == 15
    assert "rect" not in reliability_chart(reliability(np.zeros(0), np.zeros(0, bool)))
