"""Headless Chromium, driven through pipes by its DevTools protocol: what a reader of a page meets."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
_SECONDS = 60.0


class Browser:
    """A page in Chromium.

    Attributes:
      complaints: what its console and its network said: errors, warnings, exceptions, refused and failed requests.
      requests: addresses of everything that was asked for, `data:` left out.
    """

    def __init__(self, write: int, read: int) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._write, self._read = write, read
        self._numbers, self._buffer = itertools.count(1), b""
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session = ""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol, and hears what is told until it has answered."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _SECONDS
        while (told := self._next(until)).get("id") != number:
            pass
        assert "error" not in told, told
        return told["result"]

    def open(self, path: Path, width: int, *, dark: bool = False) -> None:
        """Opens a file in a window of a width in pixels, and waits until it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self.call("Page.navigate", url=path.as_uri())
        until = time.monotonic() + _SECONDS
        while not self._loaded:
            self._next(until)

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Presses a key: `"Tab"`, `"Enter"`."""
        about = {"Tab": ("", 9), "Enter": ("\r", 13)}[key]
        for kind in ("keyDown", "keyUp"):
            text = about[0] if kind == "keyDown" else ""
            about_key = {"key": key, "code": key, "text": text, "windowsVirtualKeyCode": about[1]}
            self.call("Input.dispatchKeyEvent", type=kind, **about_key)

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def printed(self) -> bytes:
        """The page as PDF, as the style sheet wants it."""
        found = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(found["data"])

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, "Chromium does not answer"
            data = os.read(self._read, 2**20)
            assert data, "Chromium has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        told = json.loads(line)
        self._hear(told.get("method", ""), told.get("params", {}))
        return told

    def _hear(self, method: str, about: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(about["entry"]["text"])
        elif method == "Network.loadingFailed":
            self.complaints.append(f"failed: {about['errorText']}")
        elif method == "Network.requestWillBeSent" and not about["request"]["url"].startswith("data:"):
            self.requests.append(about["request"]["url"])


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Starts Chromium with a profile in a folder; a test without one is skipped."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # The protocol's pipes are numbers 3 and 4 of the new process.
    shell = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
    command = ["bash", "-c", shell, "bash", found, *_FLAGS, f"--user-data-dir={folder / 'chromium'}"]
    process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
