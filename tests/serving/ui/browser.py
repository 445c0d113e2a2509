"""Headless Chromium, controlled by the Chrome DevTools Protocol over a pipe (no package, no port)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PIPE = "--remote-debugging-pipe"  # commands on file descriptor 3, responses on 4
EXEC_WITH_PIPES = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for pipe, target in zip(pipes, (3, 4)):
    os.dup2(pipe, target)
os.execv(sys.argv[3], sys.argv[3:])
"""  # moves two pipes to descriptors 3 and 4, then becomes the browser

UNTIL = """new Promise((done, failed) => {{
  const check = () => {{ try {{ if ({condition}) done(true); }} catch (error) {{ failed(error); }} }};
  new MutationObserver(check).observe(document, {{
    subtree: true, childList: true, attributes: true, characterData: true,
  }});
  check();
}})"""


def find_browser() -> str:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    return path or pytest.skip(f"not run: none of {', '.join(BROWSERS)} is installed (make browser)")


@dataclass
class Tab:
    """A browser tab, the URLs it requested, and the errors and console messages it reported."""

    reader: IO[bytes]
    writer: IO[bytes]
    session: str = ""
    last_id: int = 0
    requests: list[str] = field(default_factory=list)  # URLs, in order
    messages: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; record the events that arrive before its result."""
        self.last_id += 1
        message: dict[str, Any] = {"id": self.last_id, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while True:
            received = self._read()
            if received.get("id") == self.last_id:
                assert "error" not in received, received
                result: dict[str, Any] = received["result"]
                return result
            self._record(received)

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            assert byte, "the browser has ended"
            content += byte
        message: dict[str, Any] = json.loads(content)
        return message

    def _record(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.messages.append(
                parameters["exceptionDetails"]["exception"].get("description", "an exception")
            )
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(str([one.get("value") for one in parameters["args"]]))

    def open(self, url: str, width: int = 1100, height: int = 900, scheme: str = "light") -> None:
        """Open a URL, and wait until the page is idle."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=False,
        )  # fmt: skip
        self.call("Page.navigate", url=url)
        self.wait_until_idle()

    def js(self, expression: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_until(self, condition: str) -> None:
        """Wait until a condition is true; checked whenever the document changes."""
        self.js(UNTIL.format(condition=condition))

    def wait_until_idle(self) -> None:
        self.wait_until("document.body && !['loading', 'busy'].includes(document.body.dataset.state)")

    def text(self, element: str) -> str:
        return str(self.js(f"document.getElementById('{element}').innerText"))

    def centre(self, selector: str) -> tuple[float, float, float]:
        """Scroll an element into view; return its centre and its width."""
        query = f"document.querySelector({json.dumps(selector)})"
        box = self.js(
            f"{query}.scrollIntoView({{block: 'center'}}), (({{x, y, width, height}}) => "
            f"[x + width / 2, y + height / 2, width])({query}.getBoundingClientRect())"
        )
        return box[0], box[1], box[2]

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Press the left button, move while it is pressed, or release it."""
        pressed = 0 if kind == "mouseReleased" else 1
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=pressed, clickCount=1,
        )  # fmt: skip

    def click(self, selector: str) -> None:
        x, y, _ = self.centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    def drop(self, selector: str, file: Path) -> None:
        """Drag a file onto an element."""
        x, y, _ = self.centre(selector)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
        self.wait_until_idle()

    def screenshot(self, file: Path) -> None:
        screenshot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(screenshot["data"]))


@contextlib.contextmanager
def open_tab(folder: Path) -> Iterator[Tab]:
    """Start a browser with its profile in `folder`; yield an empty tab."""
    command = [find_browser(), *QUIET, PIPE, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    (browser_in, our_out), (our_in, browser_out) = os.pipe(), os.pipe()
    with (
        os.fdopen(our_in, "rb") as reader,
        os.fdopen(our_out, "wb") as writer,
        subprocess.Popen(
            [sys.executable, "-c", EXEC_WITH_PIPES, str(browser_in), str(browser_out), *command],
            pass_fds=(browser_in, browser_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process,
    ):  # fmt: skip
        os.close(browser_in)
        os.close(browser_out)
        try:
            tab = Tab(reader, writer)
            target = tab.call("Target.createTarget", url="about:blank")["targetId"]
            tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                tab.call(f"{domain}.enable")
            yield tab
        finally:
            process.terminate()
            process.wait(30)
