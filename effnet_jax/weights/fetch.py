"""Fetching files: what broke off goes on, what is another file than it should be is told. No JAX."""

import contextlib
import errno
import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from effnet_jax import files
from effnet_jax.cache import cache_folder, one_at_a_time
from effnet_jax.errors import WeightsError

Told = Callable[[int, int], None]  # bytes that are there, bytes in all (0: not known)

_TRIES = 4
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 2**20
_CHECKSUMS = "checksums.json"


class NotFetched(WeightsError):
    """A file could not be fetched. The message says why, without a cure."""


def fetch(url: str, place: Path, *, sha256: str = "", told: Told = lambda done, total: None) -> Path:
    """Fetches a file; what a try before left is gone on with.

    Args:
      url: where it is.
      place: where to put it; it is there whole or not at all.
      sha256: how its SHA-256 begins, where that is known; else that of the file that was good before (`remember`).
      told: hears how far it is.

    Returns:
      `place`.

    Raises:
      NotFetched: no network, no such file, or it is not the file that it should be.
      WeightsError: the disk is full, or the folder cannot be written.
    """
    partial = place.with_name(f".{place.name}.fetched")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_TRIES):
            try:
                _go_on(url, partial, told)
                break
            except urllib.error.HTTPError as error:
                if error.code < 500 or attempt == _TRIES - 1:
                    raise NotFetched(f"{url}: HTTP status {error.code} ({error.reason})") from None
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                    raise
                if attempt == _TRIES - 1 or not _may_pass(error):
                    raise NotFetched(f"{url}: {_why(error)}{_kept(partial)}") from None
            time.sleep(2.0**attempt / 4)
    except OSError as error:
        _drop(partial)
        raise WeightsError(
            f"{place} cannot be written ({error.strerror}): free some space, or set EFFNET_JAX_CACHE to another folder"
        ) from error
    _check(url, partial, sha256)
    partial.replace(place)
    _drop(partial)
    return place


def _why(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "it broke off before its end"
    why = getattr(error, "reason", None) or error
    return str(why) or type(why).__name__


def _kept(partial: Path) -> str:
    have = partial.stat().st_size if partial.exists() else 0
    return f" (the {have / 1e6:,.1f} MB that came are kept: the next start goes on from there)" if have else ""


def _may_pass(error: Exception) -> bool:
    """Whether another try may help: not where there is no such name or server."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, TimeoutError | ConnectionResetError | ConnectionAbortedError | http.client.HTTPException)


def _go_on(url: str, partial: Path, told: Told) -> None:
    """Fetches what is missing of a file, or all of it where the part is not of the file that is there now."""
    mark = _mark(partial)
    have = partial.stat().st_size if partial.exists() else 0
    response, start = _open(url, have, mark.read_text() if mark.exists() else "")
    with response, open(partial, "ab" if start else "wb") as file:
        mark.write_text(_version(response))
        have, left = start, response.length  # None where the server does not say
        total = have + left if left is not None else 0
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            have += len(chunk)
            told(have, total)
        if total and have < total:
            raise http.client.IncompleteRead(b"", total - have)


def _open(url: str, have: int, version: str) -> tuple[http.client.HTTPResponse, int]:
    """Asks for a file from a byte on, if it is of this version still; returns the answer and the byte it begins at."""
    if have:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})
        try:
            response = urllib.request.urlopen(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            # The part is longer than the file, which has changed; or whole, which only the whole file tells.
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
        else:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                return response, 0
            begins = (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
            if begins and _version(response) == version:
                return response, have
            response.close()
    return urllib.request.urlopen(url, timeout=_TIMEOUT), 0


def _version(response: http.client.HTTPResponse) -> str:
    """What a server calls a file's content by, so that another is told; "" where it has no name for it."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _mark(partial: Path) -> Path:
    """Where it is kept of which version a part is."""
    return partial.with_name(f"{partial.name}.of")


def _drop(partial: Path) -> None:
    for path in (partial, _mark(partial)):
        with contextlib.suppress(OSError):
            path.unlink()


def _check(url: str, partial: Path, sha256: str) -> None:
    """Compares a file's SHA-256 with what is known of it."""
    found, expected = _sha256(partial), sha256 or _known().get(url, "")
    if not found.startswith(expected):
        _drop(partial)
        whose = (
            "it is published with" if sha256 else f"the one that was good before had (in {cache_folder(_CHECKSUMS)})"
        )
        raise NotFetched(f"{url}: its SHA-256 is {found}, and {whose} {expected}")


def remember(url: str, file: Path) -> None:
    """Has every later download of an address be this file: it has turned out to be good."""
    memory = cache_folder(_CHECKSUMS)
    with one_at_a_time(memory):
        files.write_json(memory, {**_known(), url: _sha256(file)})


def _known() -> dict[str, str]:
    try:
        return dict(json.loads(cache_folder(_CHECKSUMS).read_text()))
    except (OSError, ValueError):
        return {}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
