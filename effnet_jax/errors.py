"""Errors that a user can act on: what is wrong, where, and the cure.

Everything that a user can get wrong raises an `EffnetError`. Commands print it without a traceback and exit with
status 2 (`run_command`); any other exception is a bug of this package and keeps its traceback.
"""

import difflib
import io
import os
import sys
from collections.abc import Callable, Iterable


class EffnetError(Exception):
    """A mistake in what the package was given. The message says what is wrong, where, and what to do."""


class ConfigError(EffnetError):
    """A config key, value or combination that cannot work."""


class PatternError(ConfigError):
    """A freezing pattern that names no unit, or would split one."""


class VariantError(EffnetError):
    """An unknown variant, family, unit, normalisation or crop rule."""


class CheckpointError(EffnetError):
    """A TensorFlow checkpoint, archive or `.pth` that cannot be read or translated."""


class WeightsError(EffnetError):
    """A weights dir that is missing, damaged or does not fit the model."""


class DataError(EffnetError):
    """A data set or image that is missing, damaged or mislabelled."""


class PathError(EffnetError):
    """A path that names no place which can be read or written: another scheme, a bucket that is missing or refuses."""


class DiskError(EffnetError):
    """A disk without room for what is to be written."""


class RunError(EffnetError):
    """A run dir or a running training that cannot go on."""


class HostsError(EffnetError):
    """Processes of one run that differ, failed, or do not answer."""


class Stopped(KeyboardInterrupt):
    """A wish to stop that was heard and followed. No error: the message says what was kept and how to go on.

    Attributes:
      signal: the signal's name, `SIGTERM` or `SIGINT`.
      status: the exit status that tells of it, 143 or 130.
    """

    def __init__(self, signal: str, message: str = ""):
        super().__init__(message)
        self.signal = signal
        self.status = {"SIGTERM": 143, "SIGINT": 130}[signal]


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Returns a clause that helps with a mistyped name.

    Args:
      name: what the user wrote.
      choices: the names that exist.
      count: the most near names to show.

    Returns:
      `"did you mean 'b1' or 'b2'?"` where something is near, else `"choose from b0, b1, …"`.
    """
    choices = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(name), choices, n=count, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(choice) for choice in near) + "?"
    return "choose from " + ", ".join(choices)


def in_brief(error: BaseException) -> str:
    """Returns another library's error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main`: an `EffnetError` becomes one message on stderr and exit status 2.

    A full disk, a refused permission and an interrupt are the user's to cure too, and end the same way. A name with
    characters that the terminal does not take is printed with escapes in their place.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except EffnetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        sys.exit(141)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{place}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(getattr(error, "status", 130))
    sys.exit(status or 0)
