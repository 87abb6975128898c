"""Weights by name: the weights dir of published weights, made once and kept in the cache."""

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

from etils import epath

from effnet_jax import files
from effnet_jax.cache import cache_folder, one_at_a_time
from effnet_jax.errors import CheckpointError, DiskError, WeightsError
from effnet_jax.weights.fetch import NotFetched, Told, fetch, remember
from effnet_jax.weights.hub import HUB
from effnet_jax.weights.published import Published, Source, find_published, not_published


def _bar(file: str) -> Told:
    """Shows how far a download is that takes more than two seconds: in one line of a terminal, else now and then."""
    began, shown = time.monotonic(), 2.0

    def told(done: int, total: int) -> None:
        nonlocal shown
        taken, alone = time.monotonic() - began, sys.stderr.isatty()
        if taken > shown:
            shown = taken + (0.2 if alone else 10.0)
            of = f" of {total / 1e6:,.0f}" if total else ""
            print(
                f"fetching {file}: {done / 1e6:,.0f}{of} MB", end="\r" if alone else "\n", file=sys.stderr, flush=True
            )

    return told


def weights_dir(name: epath.PathLike) -> epath.Path:
    """The weights dir of a path or of a name.

    Args:
      name: the path of a weights dir; or where there is no such path the name of published weights, ours
        (`noisy_student_b1`) or timm's (`tf_efficientnet_b1.ns_jft_in1k`).

    Returns:
      The folder; of a name it is in the cache, where it is put at first use.

    Raises:
      WeightsError: weights of this name are not in the cache and cannot be fetched: what to put where; or the name is
        not known.
    """
    text = os.fspath(name)
    found = find_published(text)
    if text.startswith(HUB):
        if found is None:
            raise WeightsError(
                f"{text} is none of the published weights: python -m effnet_jax.port {text} OUT, and give OUT"
            )
        return epath.Path(get_weights(found))
    path = files.as_path(name)
    if not files.is_local(path) or path.exists():
        return path
    if found is not None:
        return epath.Path(get_weights(found))
    if "/" in text or os.sep in text:
        return path  # whoever reads it says that it is not there
    raise WeightsError(f"there is no weights dir {text}, and {not_published(text)}")


def place_of(published: Published) -> Path:
    """Where the weights dir of published weights is kept."""
    return cache_folder("weights", published.name)


def get_weights(published: Published) -> Path:
    """Returns the weights dir of published weights, made at first use.

    Raises:
      WeightsError: they cannot be fetched: what to put where; or the cache cannot be written.
      DiskError: it has no room for them.
    """
    place = place_of(published)
    if place.is_dir():
        return place
    from effnet_jax import hosts

    if hosts.count() > 1:  # each has a cache to fill, but orbax writes as all processes or as the first
        _in_a_process_of_its_own(published)
        return place
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(one_at_a_time(place))
        except OSError as error:  # read-only, a file in its place, or a network disk that knows no locks
            raise WeightsError(
                f"the cache folder {place.parent} cannot be written or locked ({error.strerror}): set EFFNET_JAX_CACHE "
                "to a folder of a disk of this machine"
            ) from error
        if place.is_dir():  # another process has made it meanwhile
            return place
        return _make(published, place)


def _make(published: Published, place: Path) -> Path:
    """Makes the weights dir of published weights, from the first source that has them; returns its place."""
    reasons = []
    for source in published.sources:
        try:
            file, fetched = _file_of(published, source)
        except NotFetched as error:
            reasons.append(str(error))
            continue
        from effnet_jax.weights.port import port_checkpoint

        try:
            port_checkpoint(file, place, variant=published.variant, published=published)
        except (DiskError, WeightsError) as error:
            if fetched:
                file.unlink()
            raise type(error)(f"{error}; EFFNET_JAX_CACHE may name a folder of another disk") from error
        except CheckpointError as error:
            if not fetched:
                raise CheckpointError(f"{error}\n({file} was found here: remove it to have it fetched)") from None
            file.unlink()  # such as a page that asks to log in
            reasons.append(f"{source.url}: {error}")
            continue
        if fetched:
            if not source.sha256:
                remember(source.url, file)
            file.unlink()
        return place
    raise WeightsError(_what_to_do(published, reasons))


def _in_a_process_of_its_own(published: Published) -> None:
    """Has a process that belongs to no run fill the cache."""
    command = [sys.executable, "-m", "effnet_jax.weights", "get", published.name]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise WeightsError(done.stderr.rpartition("error: ")[2].strip() or f"{published.name} could not be fetched")


def _file_of(published: Published, source: Source) -> tuple[Path, bool]:
    """The file of a source, and whether it was fetched for this."""
    if source.package:
        return _in_package(source), False
    by_hand = _download(published, source)
    if by_hand.exists():
        return by_hand, False
    place = cache_folder("fetched", published.name, source.file)  # a kill while it was ported left it there
    return place if place.exists() else fetch(source.url, place, sha256=source.sha256, told=_bar(source.file)), True


def _download(published: Published, source: Source) -> Path:
    # Files of several recipes have one name.
    return cache_folder("downloads", published.name, source.file)


def _in_package(source: Source) -> Path:
    try:
        listed = importlib.metadata.files(source.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise NotFetched(f"the package {source.package} is not installed") from None
    for file in listed:
        if file.name == source.file:
            return Path(str(file.locate()))
    raise NotFetched(f"the package {source.package} has no {source.file}")


def _what_to_do(published: Published, reasons: list[str]) -> str:
    lines = [f"{published.name} is not on this machine and could not be fetched:", *(f"  {r}" for r in reasons)]
    packages = [source.package for source in published.sources if source.package]
    if packages:
        lines.append(f"Without a network for them: pip install {packages[0]}; or")
    lines.append("fetch one of these where there is a network, and put it here as it is:")
    lines += [f"  {s.url}\n    -> {_download(published, s)}" for s in published.sources if s.url]
    return "\n".join(lines)
