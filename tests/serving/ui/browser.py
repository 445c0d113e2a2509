"""A real headless Chromium, driven over a pipe by its own protocol: no package, no port."""

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
PIPE = "--remote-debugging-pipe"  # it reads commands from descriptor 3, and writes to 4
AS_3_AND_4 = """
import fcntl, os, sys
mine = [fcntl.fcntl(int(given), fcntl.F_DUPFD, 10) for given in sys.argv[1:3]]
for descriptor, place in zip(mine, (3, 4)):
    os.dup2(descriptor, place)
os.execv(sys.argv[3], sys.argv[3:])
"""  # a process that becomes the browser

UNTIL = """new Promise((done, failed) => {{
  const tell = () => {{ try {{ if ({condition}) done(true); }} catch (error) {{ failed(error); }} }};
  new MutationObserver(tell).observe(document, {{
    subtree: true, childList: true, attributes: true, characterData: true,
  }});
  tell();
}})"""


def find_browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or pytest.skip(f"needs a browser; none of {', '.join(BROWSERS)} is installed (make browser)")


@dataclass
class Tab:
    """A page in the browser, and all that it asked for and complained of."""

    reader: IO[bytes]
    writer: IO[bytes]
    session: str = ""
    last: int = 0
    asked: list[str] = field(default_factory=list)  # addresses, in order
    complaints: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and note what happens meanwhile."""
        self.last += 1
        message: dict[str, Any] = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while True:
            said = self._read()
            if said.get("id") == self.last:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result
            self._note(said)

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            assert byte, "the browser is gone"
            content += byte
        message: dict[str, Any] = json.loads(content)
        return message

    def _note(self, said: dict[str, Any]) -> None:
        facts = said.get("params", {})
        if said.get("method") == "Network.requestWillBeSent":
            self.asked.append(facts["request"]["url"])
        elif said.get("method") == "Log.entryAdded":
            self.complaints.append(facts["entry"]["text"])
        elif said.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(facts["exceptionDetails"]["exception"].get("description", "an exception"))
        elif said.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(str([one.get("value") for one in facts["args"]]))

    def open(self, address: str, width: int = 1100, height: int = 900, scheme: str = "light") -> None:
        """Open an address, and wait until the page rests."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=False,
        )  # fmt: skip
        self.call("Page.navigate", url=address)
        self.rests()

    def js(self, expression: str) -> Any:
        """Return what an expression gives; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for what changes the document."""
        self.js(UNTIL.format(condition=condition))

    def rests(self) -> None:
        self.until("document.body && !['loading', 'busy'].includes(document.body.dataset.state)")

    def text(self, element: str) -> str:
        return str(self.js(f"document.getElementById('{element}').innerText"))

    def middle(self, selector: str) -> tuple[float, float, float]:
        """Return the middle of an element, and its width; it is brought into view."""
        query = f"document.querySelector({json.dumps(selector)})"
        box = self.js(
            f"{query}.scrollIntoView({{block: 'center'}}), (({{x, y, width, height}}) => "
            f"[x + width / 2, y + height / 2, width])({query}.getBoundingClientRect())"
        )
        return box[0], box[1], box[2]

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Press, move while it is pressed, or release the left button."""
        held = 0 if kind == "mouseReleased" else 1
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=held, clickCount=1,
        )  # fmt: skip

    def click(self, selector: str) -> None:
        x, y, _ = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    def drop(self, selector: str, file: Path) -> None:
        """Drag a file over an element and drop it there, as a person does."""
        x, y, _ = self.middle(selector)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
        self.rests()

    def picture(self, file: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """Give a fresh page of a browser that has its profile in `folder`."""
    command = [find_browser(), *QUIET, PIPE, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    with (
        os.fdopen(our_in, "rb") as reader,
        os.fdopen(our_out, "wb") as writer,
        subprocess.Popen(
            [sys.executable, "-c", AS_3_AND_4, str(their_in), str(their_out), *command],
            pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process,
    ):  # fmt: skip
        os.close(their_in)
        os.close(their_out)
        try:
            page = Tab(reader, writer)
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                page.call(f"{domain}.enable")
            yield page
        finally:
            process.terminate()
            process.wait(30)
