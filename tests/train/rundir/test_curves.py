"""The picture of a run."""

import numpy as np
from PIL import Image

from effnet_jax.train.rundir.curves import draw_curves


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


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path):
    rows = some_rows()
    rows[2]["loss"] = None  # as metrics.jsonl has what is no number
    draw_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
