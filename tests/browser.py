"""A real browser without a window, driven over its debugging pipe: no driver program, no further package.

with Browser() as browser:
    page = browser.open("file:///tmp/report.html")
    page.evaluate("document.images.length")
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]
for ours, wanted in zip(pipes, (3, 4)):
    os.dup2(ours, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads commands from 3 and writes answers to 4, whatever the numbers of our pipes."""


def find_browser() -> str | None:
    """The program, if one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """Chromium with one tab. Answers and events are JSON, ended by a zero byte, on two pipes."""

    def __init__(self, width: int = 1200, height: int = 900) -> None:
        program = find_browser()
        assert program is not None
        self._profile = tempfile.TemporaryDirectory(prefix="vidllm-browser-", ignore_cleanup_errors=True)
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        words = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-pipe", f"--window-size={width},{height}", f"--user-data-dir={self._profile.name}",
            "about:blank",
        ]  # fmt: skip
        launched = [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), *words]
        self._process = subprocess.Popen(
            launched, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers = itertools.count(1)
        self._unread = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End it and remove what it wrote."""
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def open(self, url: str) -> Browser:
        """Load a page and wait until all of it is there."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._take()
        return self

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, target: Path, *, whole: bool = True) -> Path:
        """What a person sees, as PNG."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        target.write_bytes(base64.b64decode(picture))
        return target

    def call(self, method: str, **words: Any) -> dict[str, Any]:
        """One command and its answer; events that come between are kept."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": words}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            said = self._take()
            if said.get("id") == number:
                assert "error" not in said, said
                return dict(said["result"])

    def _take(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            more = os.read(self._from, 1 << 16)
            assert more, f"the browser ended with {self._process.poll()}"
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\0")
        said: dict[str, Any] = json.loads(line)
        if "method" in said:
            self.events.append(said)
        return said
