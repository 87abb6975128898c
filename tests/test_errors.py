"""What a command does with a user's mistake: one message, the right exit status, no traceback."""

import errno
import io
import os

import pytest

from effnet_jax import errors


def run(main) -> int:
    """Returns the exit status of `main` as a command."""
    with pytest.raises(SystemExit) as exit_:
        errors.run_command(main)
    return exit_.value.code or 0


def raiser(error: BaseException):
    """Returns a `main` that fails with `error`."""

    def main():
        raise error

    return main


def test_nearest_names_what_was_meant():
    assert errors.nearest("learning_rte", ["seed", "learning_rate", "weights"]) == "did you mean 'learning_rate'?"


def test_nearest_puts_the_nearest_first_and_no_more_than_asked():
    units = ["stem", "block1a", "block2a", "block7a"]
    assert errors.nearest("block7", units, count=2).startswith("did you mean 'block7a' or 'block")
    assert errors.nearest("block7", units, count=1) == "did you mean 'block7a'?"


def test_nearest_lists_all_choices_when_nothing_is_near():
    assert errors.nearest("zzz", ["pjit", "pmap"]) == "choose from pjit, pmap"


def test_nearest_takes_names_that_are_no_strings():
    assert errors.nearest(7, [1, 2]) == "choose from 1, 2"


@pytest.mark.parametrize("result", [None, 0])
def test_a_command_that_succeeds_exits_with_0(result):
    assert run(lambda: result) == 0


def test_a_command_may_give_its_own_status():
    assert run(lambda: 3) == 3


@pytest.mark.parametrize(
    "kind",
    [
        errors.ConfigError,
        errors.PatternError,
        errors.VariantError,
        errors.CheckpointError,
        errors.WeightsError,
        errors.DataError,
        errors.RunError,
    ],
)
def test_a_users_mistake_is_one_message_and_status_2(kind, capsys):
    assert run(raiser(kind("weights/b0 has 1000 classes: pass --num_classes 10"))) == 2
    out, err = capsys.readouterr()
    assert err == "error: weights/b0 has 1000 classes: pass --num_classes 10\n"
    assert out == ""


def test_a_full_disk_is_a_message_that_names_the_place(capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/checkpoints/7")
    assert run(raiser(full)) == 2
    assert capsys.readouterr().err == "error: No space left on device (runs/a/checkpoints/7)\n"


def test_an_os_error_without_a_place_or_number_keeps_its_words(capsys):
    assert run(raiser(OSError("the stream ended"))) == 2
    assert capsys.readouterr().err == "error: the stream ended\n"


def test_a_missing_file_is_named(capsys, tmp_path):
    assert run(lambda: (tmp_path / "absent.jpg").read_bytes()) == 2
    assert f"No such file or directory ({tmp_path / 'absent.jpg'})" in capsys.readouterr().err


def test_an_interrupt_exits_with_130(capsys):
    assert run(raiser(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_a_terminal_does_not_take_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert run(lambda: print("dög 日", flush=True)) == 0
    assert written.getvalue() == b"d\xf6g \\u65e5\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        errors.run_command(lambda: 1 // 0)
