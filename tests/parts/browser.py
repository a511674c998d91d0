"""A headless Chromium, driven over its own pipe (DevTools protocol, --remote-debugging-pipe): nothing listens on a port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage"),
)
KEYS: Final = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
PATIENCE: Final = 60.0


class Browser:
    """One tab: what it asked for is in `requests`, what it complained about in `complaints`."""

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of, self._number, self._rest = to, of, 0, b""
        self._session = ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded = 0
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._hear(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _next(self) -> Any:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._of], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._of, 1 << 20) if ready else b""
            assert piece, "the browser says nothing more"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def _hear(self, event: Any) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"])[:500])
        elif method == "Log.entryAdded":
            self.complaints.append(f"{params['entry'].get('text')} {params['entry'].get('url', '')}"[:500])

    def wait(self, after: int) -> None:
        """Wait until more pages have loaded than `after`."""
        while self._loaded <= after:
            self._hear(self._next())

    @property
    def loaded(self) -> int:
        """Return how many pages have been loaded."""
        return self._loaded

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        before = self._loaded
        self("Page.navigate", url=url)
        self.wait(before)

    def size(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Give the page a width and a colour scheme."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key of KEYS."""
        text = {"text": "\r"} if key == "Enter" else {}
        told = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self("Input.dispatchKeyEvent", type="keyDown", **told, **text)
        self("Input.dispatchKeyEvent", type="keyUp", **told)

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self("Input.insertText", text=text)

    def shot(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the page, also of what is below the fold."""
        found = self(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **({"clip": self._all()} if whole else {})
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def _all(self) -> Any:
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 8000), "scale": 1}


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Run a Chromium with a profile of its own in `folder`; it is gone afterwards."""
    program = shutil.which("chromium")
    if not program:
        pytest.skip("no chromium: apt-get install chromium")
    (theirs, to), (of, ours) = os.pipe(), os.pipe()

    def hand_over() -> None:
        a, b = os.dup(theirs), os.dup(ours)  # out of the way of one another
        os.dup2(a, 3)
        os.dup2(b, 4)

    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank"],
            **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "preexec_fn": hand_over, "close_fds": False},
            start_new_session=True,
        )
    os.close(theirs)
    os.close(ours)
    try:
        yield Browser(to, of)
    finally:
        os.close(to)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        os.close(of)
