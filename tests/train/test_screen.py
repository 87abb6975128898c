"""What a run tells its reader."""

import types

import pytest

from effnet_jax import hosts
from effnet_jax.train.screen import Screen, slowest_input


@pytest.mark.parametrize(("wait", "words"), [(0.34, "  512 images/s  waiting 34 % for images  9 s left"), (0.1, "")])
def test_an_epochs_line_says_when_the_devices_wait_for_images(capsys, wait, words):
    meter = types.SimpleNamespace(images_per_second=512.4, input_wait=wait, time_left=lambda end: "9 s left")
    Screen().end_epoch("head", (1, 3), {"train": {"accuracy": 0.5, "loss": 1.0}}, meter, 30)
    line = capsys.readouterr().out
    assert line.startswith("head 1/3  train 50.0 % (loss 1.000)  512 images/s")
    assert words in line and ("waiting" in line) == bool(words)


def test_the_process_that_the_others_wait_for_is_named(monkeypatch):
    monkeypatch.setattr(hosts.names.here, "names", ["here", "there", "elsewhere"])
    assert slowest_input([0.02, 0.41, 0.0]) == ("process 1 (there) waits 41 % for its images, the others up to 2 %")
    assert slowest_input([0.02, 0.1, 0.0]) == "" and slowest_input([0.9]) == ""
