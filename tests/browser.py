"""A headless Chromium, driven through its debugging pipe: no library, no port, no network."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
_PIPES = (
    "import os, sys; r, w = (os.dup(int(fd)) for fd in sys.argv[1:3]); "
    "r, w = os.dup(r), os.dup(w); os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_PATIENCE = 60  # seconds for an answer


def find() -> str | None:
    """Return a Chromium on the PATH, or one that Playwright installed."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    own = sorted(Path.home().glob(".cache/ms-playwright/chromium*/*/*headless*shell"))
    return found or (str(own[0]) if own else None)


class Page:
    """An empty page of some size; `complaints` is all that the console and the log have said since."""

    def __init__(self, browser: _Browser, width: int, height: int, *, dark: bool = False) -> None:
        self._browser = browser
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._requests: dict[str, str] = {}
        self.complaints: list[str] = []
        for domain in ("Network", "Log", "Runtime", "Page"):
            self._ask(f"{domain}.enable")
        self._ask("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for, but for those that the page's own policy stopped."""
        return list(self._requests.values())

    def open(self, address: str) -> None:
        self._ask("Page.navigate", url=address)
        self._browser.wait(lambda event: self._heard(event) == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _ask(self, method: str, **parameters: Any) -> Any:
        return self._browser.ask(method, self._session, self._heard, **parameters)

    def _heard(self, event: dict[str, Any]) -> str | None:
        if event.get("sessionId") != self._session:
            return None
        method, said = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self._requests[said["requestId"]] = said["request"]["url"]
        elif method == "Network.loadingFailed" and said.get("blockedReason") == "csp":
            del self._requests[said["requestId"]]
        elif method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(said))
        return method


class _Browser:
    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._number = 0
        self._buffer = b""

    def ask(self, method: str, session: str | None = None, hear: Any = lambda event: None, **parameters: Any) -> Any:
        self._number += 1
        question: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            question["sessionId"] = session
        os.write(self._write, json.dumps(question).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            hear(answer)

    def wait(self, done: Any) -> None:
        while not done(self._next()):
            pass

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], _PATIENCE)
            part = os.read(self._read, 2**16) if ready else b""
            assert part, "the browser does not answer"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextlib.contextmanager
def running(profile: Path) -> Iterator[_Browser]:
    """Start a browser with a profile of its own, which cannot look a host up."""
    binary = find()
    assert binary is not None
    (r, to), (back, w) = os.pipe(), os.pipe()
    pipes = [sys.executable, "-c", _PIPES, str(r), str(w)]
    options = [*_OPTIONS, f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    process = subprocess.Popen(
        [*pipes, binary, *options, "--remote-debugging-pipe", "about:blank"],
        pass_fds=(r, w),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(r)
    os.close(w)
    try:
        yield _Browser(back, to)
    finally:
        process.terminate()
        process.wait()
        os.close(to)
        os.close(back)
