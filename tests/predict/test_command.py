"""The command: what it prints and writes, its exit status, and how it ends where the world is not as it should be."""

import contextlib
import errno
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effnet_jax import predict
from effnet_jax.errors import ConfigError, RunError, Stopped, WeightsError, run_command
from effnet_jax.predict.growing import GrowingFile
from tests.disk import failing_disk
from tests.scripts import REPOSITORY


def command(*arguments: object, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "effnet_jax.predict", *map(str, arguments)]
    return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, **options)


def test_text_and_json(weights, photographs, capsys):
    image = str(photographs / "00.png")
    assert predict.main([str(weights), image, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == image and len(lines) == 3 and "%  class" in lines[1]
    assert predict.main([str(weights), image, "--top", "3", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["image"] == image
    probabilities = [line["probability"] for line in result["predictions"]]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    assert result["predictions"][0].keys() == {"class", "index", "probability"}
    assert lines[1].endswith(result["predictions"][0]["class"])


@pytest.mark.parametrize("flag", ["--json", "--out=-"])
def test_json_is_utf_8_where_the_terminal_is_not(weights, photographs, tmp_path, monkeypatch, flag):
    name = str(tmp_path / "ü\u0085日.png")
    shutil.copy(photographs / "00.png", name)
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert predict.main([str(weights), name, flag]) == 0
    found = json.loads(written.getvalue().decode())
    assert (found[0] if flag == "--json" else found)["image"] == name


def test_bad_files_are_entries_and_the_status_says_so(weights, photographs, capsys):
    assert predict.main([str(weights), str(photographs), "--top=1"]) == 1
    captured = capsys.readouterr()
    assert f"{photographs / '05.png'}\n  error: " in captured.out and "2 of 21 images could not be read" in captured.err
    assert predict.main([str(weights), str(photographs), "--json"]) == 1
    entries = json.loads(capsys.readouterr().out)
    assert [index for index, entry in enumerate(entries) if "error" in entry] == [5, 18]
    assert predict.main([str(weights), str(photographs), "--out=-", "--threshold=0.999"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("predictions") for line in lines] == [entry.get("predictions") for entry in entries]
    assert lines[0]["class"] == "unknown"


def test_an_output_is_gone_on_with_to_the_byte(weights, photographs, tmp_path, capsys):
    arguments = [str(weights), str(photographs), "--batch_size=8", f"--out={tmp_path / 'a.jsonl'}"]
    assert predict.main(arguments) == 1
    content = (tmp_path / "a.jsonl").read_bytes()
    assert content.count(b"\n") == 21
    (tmp_path / "a.jsonl").write_bytes(content[: len(content) * 2 // 3])
    arguments.remove("--batch_size=8")  # it goes on with the one that the output was begun with
    assert predict.main(arguments) == 1
    assert (tmp_path / "a.jsonl").read_bytes() == content
    assert "has 8 of 21 images: going on from there" in capsys.readouterr().err
    assert predict.main(arguments) == 1 and (tmp_path / "a.jsonl").read_bytes() == content
    for other in ("--threshold=0.3", "--top=2", "--tta=flip", "--resolution=64"):
        with pytest.raises(ConfigError, match=f"other settings .*{other[2:5]}.* was .* and is"):
            predict.main([*arguments, other])
    (tmp_path / "a.jsonl.about.json").unlink()
    with pytest.raises(ConfigError, match="nothing says what it was made with"):
        predict.main(arguments)
    (tmp_path / "a.jsonl").unlink()
    assert predict.main([str(weights), str(photographs / "00.png"), arguments[2]]) == 0  # begun anew


def test_features_need_no_classifier(trunk, photographs, tmp_path, capsys):
    out = tmp_path / "new" / "f.npz"
    arguments = [str(trunk), str(photographs), f"--features={out}", "--batch_size=8"]
    assert predict.main(arguments) == 1
    with np.load(out) as found:
        assert found["features"].shape == (19, 1280) and len(found["images"]) == 19 and len(found["errors"]) == 2
    assert predict.main(arguments) == 1 and "is there already" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="features of other images"):
        predict.main([str(trunk), str(photographs / "00.png"), *arguments[2:]])
    with pytest.raises(WeightsError, match="has no classifier"):
        predict.main([str(trunk), str(photographs)])


@pytest.mark.parametrize("flag", ["--out=a.jsonl", "--features=a.npz"])
def test_a_second_process_leaves_an_output_that_is_begun_as_it_is(weights, photographs, tmp_path, monkeypatch, flag):
    """Until its first batch is done, an output is an empty file, and what it is made with is all that it has."""
    monkeypatch.chdir(tmp_path)
    name = flag.partition("=")[2]
    with contextlib.closing(GrowingFile(name if name.endswith("jsonl") else f"{name}.names")):
        Path(f"{name}.about.json").write_text("of the first")
        with pytest.raises(RunError, match="is being written by another process"):
            predict.main([str(weights), str(photographs), flag])
        assert Path(f"{name}.about.json").read_text() == "of the first"


def test_an_empty_file_may_become_an_output(trunk, photographs, tmp_path):
    (tmp_path / "f.npz").touch()  # as mktemp makes one
    assert predict.main([str(trunk), str(photographs / "00.png"), f"--features={tmp_path / 'f.npz'}"]) == 0
    with np.load(tmp_path / "f.npz") as found:
        assert len(found["features"]) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sigterm_that_python_drops_is_followed_at_the_next_result(weights, photographs, tmp_path):
    def terminate(phase: str, info: dict) -> None:  # what a callback raises goes no further
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            gc.callbacks.remove(terminate)
            signal.raise_signal(signal.SIGTERM)

    gc.callbacks.append(terminate)
    out = tmp_path / "a.jsonl"
    try:
        with pytest.raises(Stopped, match="terminated: .* has the first 0 of 21 images; the same") as stop:
            predict.main([str(weights), str(photographs), f"--out={out}", "--batch_size=8"])
    finally:
        if terminate in gc.callbacks:
            gc.callbacks.remove(terminate)
    assert stop.value.status == 143 and not out.read_bytes()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_many_images_show_a_progress_bar(weights, tmp_path, capsys, monkeypatch):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "0.png")
    for number in range(1, 17):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{number}.png")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    predict.main([str(weights), str(tmp_path), "--top", "1"])
    captured = capsys.readouterr()
    assert "17/17" in captured.err
    lines = captured.out.splitlines()  # the results do not go where the bar goes
    assert lines[::2] == [str(tmp_path / name) for name in sorted(path.name for path in tmp_path.iterdir())]
    assert len(lines) == 34


@pytest.mark.parametrize("arguments", [["nowhere", "x.jpg"], ["nowhere", __file__], ["w", __file__, "--out=a.txt"]])
def test_mistakes_end_with_one_message(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: predict.main(arguments))
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments", [["--top=0"], ["--threshold=1"], ["--json", "--out=a.csv"], ["--features=a.npz", "--threshold=0.5"]]
)
def test_flags_that_do_not_go_together(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        predict.main(["weights", "x.jpg", *arguments])
    assert exit_.value.code == 2 and "error: --" in capsys.readouterr().err


@pytest.fixture(scope="module")
def many(photographs, tmp_path_factory) -> Path:
    """A folder of 4,000 links to an image."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(4000):
        (folder / f"{number:05}.png").symlink_to(photographs / "00.png")
    return folder


def test_a_reader_that_closes_the_pipe_is_no_error(weights, many):
    line = [sys.executable, "-m", "effnet_jax.predict", str(weights), str(many), "--out=-", "--batch_size=8"]
    with subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["image"].endswith("00000.png")
        process.stdout.close()
        assert process.wait(600) == 141 and process.stderr.read() == b""


def test_a_disk_that_fills_up_leaves_whole_lines_and_the_way_on(weights, photographs, tmp_path):
    out = tmp_path / "answers.jsonl"
    arguments = [weights, photographs, "--batch_size=8", f"--out={out}"]
    environment = os.environ | failing_disk(tmp_path, "answers.jsonl", calls="write", error=errno.ENOSPC, after=3_000)
    full = command(*arguments, env=environment | {"DISK_PATH": "/answers.jsonl"})
    lines = out.read_text().splitlines()
    assert full.returncode == 2, full.stderr
    assert "no space left on the disk" in full.stderr and "goes on from there" in full.stderr
    assert "Traceback" not in full.stderr
    assert len(lines) % 8 == 0 and all(json.loads(line)["image"] for line in lines)
    again = command(*arguments)
    assert again.returncode == 1, again.stderr
    assert len(out.read_text().splitlines()) == 21


def test_a_kill_and_an_interrupt_in_the_middle(weights, many, tmp_path):
    out = tmp_path / "a.csv"
    line = [sys.executable, "-m", "effnet_jax.predict", str(weights), str(many), f"--out={out}", "--batch_size=8"]

    def lines() -> int:
        return out.read_bytes().count(b"\n") if out.exists() else 0

    for sent, status, told in (
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGTERM, 143, "terminated: "),
        (signal.SIGINT, 130, "interrupted: "),
    ):
        before = lines()
        with subprocess.Popen(line, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
            while lines() <= before + 20:
                assert process.poll() is None, process.stderr and process.stderr.read()
            process.send_signal(sent)
            _, errors = process.communicate(timeout=600)
            assert process.returncode == status
        assert told in errors and ("the same command goes on" in errors) == bool(told)
    kept = out.read_bytes()
    assert 40 < kept.count(b"\n") < 4000 and kept.endswith(b"\n")
    names = [Path(row.split(",")[0]).name for row in kept.decode().splitlines()[1:]]
    assert names == [f"{number:05}.png" for number in range(len(names))]
