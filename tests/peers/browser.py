"""A real headless Chromium, driven over a pipe with the Chrome DevTools Protocol, so no driver has
to be installed.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.peers.waiting import DEADLINE_S, wait_until

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    # WebGL on the CPU, so that pixels are the same on every machine.
    "--use-angle=swiftshader-webgl",
    "--enable-unsafe-swiftshader",
    "--force-color-profile=srgb",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--no-first-run",
    # Only our own server: requests to the internet fail.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--disable-background-networking",
)


class Browser:
    """One browser process with one page. `problems` keeps the page's errors."""

    def __init__(self, program: str, folder: Path, size: tuple[int, int] = (1600, 900)) -> None:
        """`folder`: the browser's profile and log. `size`: (width, height) of the page in pixels."""
        self._program = program
        self._folder = folder
        self._size = size
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._session: str | None = None
        # Uncaught exceptions, rejected promises and console errors, in order
        self.problems: list[str] = []
        # Every line that the page logged
        self.console: list[str] = []

    def __enter__(self) -> Browser:
        self._folder.mkdir(parents=True, exist_ok=True)
        # The browser reads from descriptor 3 and writes to descriptor 4.
        hears, self._says = os.pipe()
        self._hears, says = os.pipe()

        flags = [
            *FLAGS,
            f"--user-data-dir={self._folder / 'profile'}",
            f"--window-size={self._size[0]},{self._size[1]}",
        ]
        if os.geteuid() == 0:
            # Chromium's sandbox refuses root, the user of many containers.
            flags.append("--no-sandbox")

        start = f'exec "$0" "$@" 3</dev/fd/{hears} 4>/dev/fd/{says}'
        with (self._folder / "browser.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", start, self._program, *flags, "about:blank"],
                pass_fds=(hears, says),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        os.close(hears)
        os.close(says)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self._attach()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # The browser has its own session, so this also kills the processes that it started.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._says)
        self._listener.join(DEADLINE_S)
        os.close(self._hears)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one protocol command and return its answer. Raises AssertionError if the browser
        answers with an error, or not at all.
        """

        number = next(self._numbers)
        answer: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers[number] = answer
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._says, data) :]

        try:
            said = answer.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"{method}: no answer within {DEADLINE_S:.0f} s") from None

        assert "error" not in said, f"{method}: {said['error']}"
        result: dict[str, Any] = said["result"]
        return result

    def _attach(self) -> None:
        """Attach to the page that the browser opens at its start."""

        def found() -> str | None:
            targets = self.call("Target.getTargets")["targetInfos"]
            return next(
                (target["targetId"] for target in targets if target["type"] == "page"), None
            )

        page = wait_until("the browser has a page", found)
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        width, height = self._size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(f"{url} loaded", "document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, as plain data."""
        said = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, f"{expression}: {said['exceptionDetails']}"
        return said["result"].get("value")

    def wait(self, what: str, expression: str) -> Any:
        """Wait until a JavaScript expression is truthy, and return its value. At the deadline, fail
        with the page's last log lines.
        """
        try:
            return wait_until(what, lambda: self._value_or_none(expression), every_s=0.2)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\nproblems: {self.problems[-5:]}\nconsole: {self.console[-10:]}"
            ) from None

    def _value_or_none(self, expression: str) -> Any:
        try:
            return self.value(expression)
        except AssertionError:
            # Between two pages no context exists that could evaluate it.
            return None

    def click(self, what: str, expression: str, times: int = 1) -> None:
        """Click with the left button on the middle of the element that a JavaScript expression
        finds.
        """
        x, y = self.wait(
            what,
            f"(() => {{ const found = {expression}; if (!found) return null; "
            " found.scrollIntoView({block: 'nearest'}); const r = found.getBoundingClientRect();"
            " return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null })()",
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count
                )

    def drag(self, x: float, y: float) -> None:
        """Press the left button at (x, y) in the page, move 4 pixels to the right, and release."""
        for kind, to in (
            ("mousePressed", x),
            ("mouseMoved", x + 2),
            ("mouseMoved", x + 4),
            ("mouseReleased", x + 4),
        ):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=to,
                y=y,
                button="left",
                buttons=1,
                clickCount=1,
            )

    def screenshot(self, path: Path | None = None) -> NDArray[np.uint8]:
        """The page as (rows, columns, 3), RGB; also written to `path` as PNG."""
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def _listen(self) -> None:
        rest = b""
        while data := os.read(self._hears, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for message in messages:
                said = json.loads(message)
                if "id" in said:
                    self._answers.pop(said["id"]).put(said)
                else:
                    self._note(said["method"], said.get("params", {}))
        for waiting in list(self._answers.values()):
            waiting.put({"error": "the browser has ended"})

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled":
            line = " ".join(
                str(part.get("value", part.get("description", ""))) for part in said["args"]
            )
            self.console.append(f"{said['type']}: {line}")
            if said["type"] in ("error", "assert"):
                self.problems.append(line)
        elif method == "Log.entryAdded":
            entry = said["entry"]
            self.console.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
            if entry["level"] == "error":
                self.problems.append(f"{entry['text']} {entry.get('url', '')}")
        elif method in ("Inspector.targetCrashed", "Target.targetCrashed"):
            self.problems.append("the page crashed")
