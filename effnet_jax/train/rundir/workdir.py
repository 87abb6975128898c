"""The run dir before a run: free, to be resumed, finished, or somebody else's."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from effnet_jax import files, hosts, locks
from effnet_jax.errors import EffnetError, RunError
from effnet_jax.train.config import compare_configs, default_config, to_json
from effnet_jax.train.config.differences import BEFORE
from effnet_jax.train.rundir.attempts import ATTEMPTS
from effnet_jax.train.rundir.checkpoints import CHECKPOINTS
from effnet_jax.train.rundir.identity import DATA, read_identity
from effnet_jax.train.rundir.log import METRICS

CONFIG, SUMMARY = "config.json", "summary.json"
_TOKEN = ".attempt"
_SECONDS_TO_SEE = 30.0


def check_workdir(workdir: epath.Path, config: Any) -> tuple[list[str], dict[str, Any] | None]:
    """Checks that a config may run in a folder.

    Args:
      workdir: the run dir; need not exist.
      config: checked.

    Returns:
      One line for each key that differs from the first attempt's config and changes no number; and the summary of a
      run that finished there with this config, None where there is something to do.

    Raises:
      RunError: the folder holds a run of another config (the message has the difference), or something else.
    """
    if not workdir.exists():
        return [], None
    if not workdir.is_dir():
        raise RunError(f"{workdir} is a file: give --workdir a folder")
    old = read_run_json(workdir / CONFIG)
    if old is None:
        if content := files.visible(workdir):
            raise RunError(
                f"{workdir} exists and is not a run dir (it has no {CONFIG}, but {content[0]!r}): give another "
                "--workdir"
            )
        return [], None
    lines, neutral = compare_configs(old, to_json(config), places_differ=read_identity(workdir) is not None)
    if lines:
        shown = "\n  ".join(lines[:20])
        raise RunError(
            f"{workdir} holds a run of another config:\n  {shown}\ngive another --workdir, or the old config to resume"
        )
    return neutral, read_run_json(workdir / SUMMARY, "delete it, and start again")


def as_begun(workdir: epath.Path, config: Any) -> Any:
    """Returns a checked config, in a run dir with what keys meant when the run began without them."""
    old = read_run_json(workdir / CONFIG) if workdir.is_dir() else None
    if not isinstance(old, dict):
        return config
    changed = config.copy_and_resolve_references()
    for room, keys in BEFORE.items():
        for key, value in keys.items():
            if key not in old.get(room, {}) and config[room][key] == default_config()[room][key]:
                changed[room][key] = value
    return changed.lock()


@contextlib.contextmanager
def claim_workdir(workdir: epath.Path, config: Any) -> Iterator[locks.Claim]:
    """Makes the run dir with its `config.json`, and holds its lock: no other run may write there.

    Where a mistake of the user, such as a damaged first image, ends the block of a new run that has written nothing
    but what it was given, that is removed again.

    Yields:
      The claim, to be checked before something large is written.

    Raises:
      RunError: another run holds the run dir.
    """
    existed = workdir.exists()
    with contextlib.ExitStack() as stack:
        claim, new = locks.Claim(), False
        with hosts.agree("the run dir is claimed"):
            if hosts.is_first():
                files.make_folder(workdir)
                claim = stack.enter_context(locks.lock(workdir))
                if check_workdir(workdir, config)[1]:  # while this one was starting
                    raise RunError(f"another start has just finished the run in {workdir}: its figures are there")
                new = not (workdir / CONFIG).exists()
                if new:
                    files.write_json(workdir / CONFIG, to_json(config))
        _check_shared(workdir)
        try:
            yield claim
        except (EffnetError, OSError):
            if new and _holds_nothing(workdir):  # still under the lock
                for name in files.visible(workdir):
                    files.remove(workdir / name)
                if not existed:
                    files.remove(workdir)
            raise


def _check_shared(workdir: epath.Path) -> None:
    """Makes sure that all processes see one folder: what the first one writes, the others will have to read.

    Raises:
      RunError: they do not.
    """
    if hosts.count() == 1:
        return
    token = hosts.on_first("a token", lambda: uuid.uuid4().hex)
    path = workdir / _TOKEN
    with hosts.agree("the token is written"):
        if hosts.is_first():
            files.write_json(path, token)
    with hosts.agree("the run dir is one folder for all processes"):
        until = time.monotonic() + _SECONDS_TO_SEE
        while (seen := files.read_json(path)) != token:
            if time.monotonic() > until:
                raise RunError(
                    f"{workdir} is not the same folder here as on process 0 ({'another' if seen else 'no'} token is "
                    "there): give all processes one on a shared disk, or gs://…"
                )
            time.sleep(0.2)  # a network disk may show it late


def _holds_nothing(workdir: epath.Path) -> bool:
    """Whether a run has left no more than what it was given: no figures, no checkpoint, no cache."""
    names = set(files.visible(workdir)) if workdir.exists() else set()
    given = {CONFIG, DATA, ATTEMPTS, METRICS, CHECKPOINTS} | {name for name in names if name.startswith("events.out")}
    if not names <= given or CONFIG not in names:
        return False
    return not files.read_lines(workdir / METRICS) and not files.visible(workdir / CHECKPOINTS)


def read_run_json(path: epath.Path, cure: str = "give another --workdir") -> Any:
    """Reads a JSON file of a run dir; None where there is none. Raises RunError where it is damaged."""
    try:
        return files.read_json(path)
    except ValueError as error:
        raise RunError(f"{error}: {cure}") from None
