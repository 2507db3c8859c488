"""Debian's Chromium without a window or a network, driven through a pipe (the DevTools protocol)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 30
OPTIONS = (
    "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio",
    "--hide-scrollbars",
    # No name is found and no address is reached; what a page asks for is still seen, and fails.
    "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
)  # fmt: skip
DECODED = "Promise.all([...document.images].map(image => image.decode().catch(() => 0))).then(() => 0)"


class Browser:
    """One Chromium with one page open. Use as a context manager: it ends with the block.

    Args:
        profile: an empty folder for the browser's own files.
    """

    def __init__(self, profile: Path):
        # Root needs --no-sandbox; nothing is opened here but files that the tests made.
        options = [*OPTIONS, "--no-sandbox", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        # Chromium reads descriptor 3 and writes 4: moved out of the way first, because ours may be these two.
        ours = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 20) for descriptor in (read, write)]
        os.close(read), os.close(write)

        def as_three_and_four() -> None:
            os.dup2(ours[0], 3), os.dup2(ours[1], 4)

        self.process = subprocess.Popen(
            [EXECUTABLE, *options, "about:blank"], preexec_fn=as_three_and_four, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for descriptor in ours:
            os.close(descriptor)
        self._buffer, self._number, self._session, self._loaded = b"", 0, None, False
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: Any) -> None:
        self._session = None
        with suppress(OSError, EOFError, TimeoutError):
            self.call("Browser.close")
        os.close(self._write), os.close(self._read)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def open(self, page: Path, width: int, scheme: str = "light", policy: bool = True) -> None:
        """Load a file at a width in CSS pixels, and wait until it and all that it asks for is there.

        ``policy`` False: without the page's content security policy, which would hide what it asks for.
        """
        self.call("Page.setBypassCSP", enabled=not policy)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )  # fmt: skip
        self.requests.clear()
        self._loaded = False
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self._loaded:
            self._receive()
        self.evaluate(
            "Promise.all([...document.images].map(image => image.decode().catch(() => 0))).then(() => 0)"
        )

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, path: Path, height: int | None = None) -> None:
        """A PNG of the page, down to ``height`` or to its end."""
        width, whole = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height or whole, "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come before it are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"chromium said nothing for {SECONDS} s")
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise EOFError(f"chromium ended (exit status {self.process.poll()})")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        elif message.get("method") == "Page.loadEventFired":
            self._loaded = True
        return message
