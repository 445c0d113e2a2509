"""A served model as a classifier, over the Open Inference (V2) protocol, REST: KServe, Triton and others.

With httpx, and not with `tritonclient`: that holds ml-dtypes at or below 0.5.4, the least that onnx takes.
"""

from __future__ import annotations

import math
import os
import re
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import numpy as np

from robust_export.errors import ArtifactError, InvalidValue, reason
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.open_inference import (
    BINARY,
    LENGTH,
    Metadata,
    Server,
    clip,
    parse,
    read_logits,
    words,
    write_request,
)

KEY = "ROBUST_EXPORT_API_KEY"
PART = r"[^\s/?#@\\]+"
FORM = re.compile(rf"(https?://{PART}/v2)/models/{PART}(/versions/{PART})?/?", re.IGNORECASE)
HERE = ("all://localhost", "all://127.0.0.1", "all://[::1]")  # which no proxy can reach for us

DROPPED = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
BUSY = (429, 503)
WAITS, LONGEST = 5, 60.0  # for a server that is busy, and the seconds of one at most
FINAL = (401, 403, 404, 429)  # refusals that a smaller batch does not mend
ADVICE = {
    401: f"Set {KEY} to a key of that server.",
    403: f"Set {KEY} to a key that may use this model.",
    404: "Is this the model's name, and is the model loaded?",
}


class _Refused(ArtifactError):
    """A batch that the server refuses, which a smaller one may mend."""


class RemoteClassifier:
    """Asks a served model, a batch at a time, over a connection that is kept.

    Where the environment has ROBUST_EXPORT_API_KEY, every request has it as its bearer token. A request is
    made again, once, if its connection drops, and a few times while the server is busy (429, 503). A batch
    that the server refuses (4xx) is halved, and so are those after it. No redirection is followed.

    Args:
        url: http(s)://host:port/v2/models/NAME, or one of its versions, .../NAME/versions/V. The model has
            one input, FP32 [-1, C, H, W], and its first output is the logits, FP32 [-1, K].
        batch_size: images of a request, at most.
        timeout: seconds that may pass without a byte from the server.
        binary: whether tensors are sent as bytes, not as JSON; None does so where the server says it can.
        sleep: waits for a number of seconds.

    Raises:
        InvalidValue: if the address has another form, or a setting is out of its range.
        ArtifactError: if the server cannot be reached, refuses, or serves no such model; so does every call.
    """

    runtime = "remote"
    precision = "unknown"
    sparta_nodes = 0
    plane: tuple[int, ...]
    classes: int
    labels: list[str] | None

    def __init__(
        self, url: str, batch_size: int = 64, timeout: float = 60.0, *, binary: bool | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:  # fmt: skip
        server = _server_of(url)
        if batch_size < 1 or not 0 < timeout < math.inf:
            raise InvalidValue(
                f"batch size {batch_size} and timeout {timeout} s; expected 1 or more, and more than 0 s"
            )
        self.url, self.batch_size, self.timeout = url.rstrip("/"), batch_size, timeout
        self._sleep = sleep
        self._key = _key()
        client = self._client = _client(self._key, timeout)
        self.close: Callable[[], object] = weakref.finalize(self, client.close)
        self._read_metadata()
        self.binary = self._speaks_binary(server) if binary is None else binary
        if self.classes < 1:
            self.classes = self._ask(np.zeros((1, *self.plane), np.float32)).shape[1]

    def __call__(self, pixels: Pixels) -> Logits:
        if pixels.shape[1:] != self.plane:
            raise InvalidValue(f"{self.url} takes images {list(self.plane)}, not {list(pixels.shape[1:])}")
        outputs = [np.empty((0, self.classes), np.float32)]
        done = 0
        while done < len(pixels):
            part = pixels[done : done + self.batch_size]
            try:
                outputs.append(self._ask(part))
                done += len(part)
            except _Refused:
                if len(part) == 1:
                    raise
                self.batch_size = len(part) // 2
        return np.concatenate(outputs)

    def fused_nodes(self) -> int:
        """Return 0: which kernels a server runs is not seen from here."""
        return 0

    def _ask(self, pixels: Pixels) -> Logits:
        """Return the answer to one request, of any K while `classes` is not known."""
        body, headers = write_request(pixels, self._input, self._output, self.binary)
        response = self._send("POST", f"{self.url}/infer", body, headers)
        if not response.is_success:
            raise self._refusal(response)
        try:
            logits = read_logits(response.content, response.headers.get(LENGTH), self._output)
        except ValueError as error:
            raise self._unreadable(response, error) from error
        rows, known = len(pixels), self.classes > 0
        if logits.ndim != 2 or len(logits) != rows or (known and logits.shape[1] != self.classes):
            raise ArtifactError(
                f"{self.url} answered {rows} images with {self._output} {list(logits.shape)}; expected "
                f"[{rows}, {self.classes if known else 'K'}]"
            )
        return logits

    def _read_metadata(self) -> None:
        response = self._send("GET", self.url)
        if not response.is_success:
            raise self._refusal(response)
        try:
            metadata = parse(Metadata, response.content)
            self.labels = metadata.labels()
        except ValueError as error:
            raise self._unreadable(response, error) from error
        inputs, outputs = metadata.inputs, metadata.outputs
        batch, *plane = (inputs[0].shape if len(inputs) == 1 else []) or [0]
        if batch not in (-1, 1) or len(plane) != 3 or min(plane) < 1 or inputs[0].datatype != "FP32":
            found = clip(", ".join(map(str, inputs))) or "none"
            raise ArtifactError(
                f"{self.url} is no classifier of images: its inputs are {found}; expected one, FP32 "
                "[-1, C, H, W]"
            )
        if not outputs or outputs[0].datatype != "FP32" or len(outputs[0].shape) != 2:
            found = clip(str(outputs[0])) if outputs else "none"
            raise ArtifactError(f"{self.url}: its first output is {found}; expected logits, FP32 [-1, K]")
        if batch == 1:
            self.batch_size = 1
        self.plane, self.classes = tuple(plane), outputs[0].shape[1]
        self._input, self._output = inputs[0].name, outputs[0].name

    def _speaks_binary(self, server: str) -> bool:
        response = self._send("GET", server)
        try:
            return response.is_success and BINARY in parse(Server, response.content).extensions
        except ValueError:  # a gateway's own page, say; JSON is what every server takes
            return False

    def _send(
        self, method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        drops = waits = 0
        while True:
            try:
                response = self._client.request(method, url, content=body, headers=headers)
            except httpx.TimeoutException as error:
                raise ArtifactError(f"{self.url} did not answer within {self.timeout:g} s") from error
            except DROPPED as error:
                drops += 1
                if drops > 1:
                    raise ArtifactError(
                        f"{self.url}: the connection failed twice: {self._clip(reason(error))}"
                    ) from error
                continue
            except (httpx.HTTPError, UnicodeError) as error:
                raise ArtifactError(
                    f"{self.url} cannot be reached: {self._clip(reason(error))}\nIs the server running, "
                    "and is it http or https? SSL_CERT_FILE names the certificates that are trusted."
                ) from error
            wait = retry_after(response.headers.get("Retry-After"), waits)
            if response.status_code not in BUSY or waits == WAITS or wait > LONGEST:
                return response
            self._sleep(wait)
            waits += 1

    def _refusal(self, response: httpx.Response) -> ArtifactError:
        status = response.status_code
        phrase = self._clip(response.reason_phrase)
        text = f"{self.url} answered {status} {phrase}: {self._words(response)}"
        if response.has_redirect_location:
            target = self._clip(response.headers["Location"])
            return ArtifactError(f"{self.url} is elsewhere ({status}): give the address that {target} is of")
        if "Retry-After" in response.headers:
            text += f"\nIt asks to wait first (Retry-After: {self._clip(response.headers['Retry-After'])})."
        text += f"\n{ADVICE[status]}" if status in ADVICE else ""
        return (_Refused if response.is_client_error and status not in FINAL else ArtifactError)(text)

    def _unreadable(self, response: httpx.Response, error: ValueError) -> ArtifactError:
        return ArtifactError(
            f"{self.url} answered {response.status_code} with what is no answer of the V2 protocol: "
            f"{self._clip(reason(error))}\nIt begins: {self._words(response)}"
        )

    def _words(self, response: httpx.Response) -> str:
        key = self._key.encode()
        return words(response.content.replace(key, b"***") if key else response.content) or "(nothing)"

    def _clip(self, text: str) -> str:
        return clip(text.replace(self._key, "***") if self._key else text)


def retry_after(value: str | None, attempt: int) -> float:
    """Return the seconds that a server asks to wait (RFC 9110, 10.2.3), or 0.5, 1, 2, ... where it does not.

    >>> retry_after("7", 0), retry_after(None, 3), retry_after("Thu, 01 Jan 1970 00:00:00 GMT", 0)
    (7.0, 4.0, 0.0)
    """
    if value is not None and re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value or "")
    except ValueError:
        return 0.5 * 2.0**attempt
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _server_of(url: str) -> str:
    """Return the address of the server's own metadata."""
    match = FORM.fullmatch(url)
    try:
        port = httpx.URL(url).port
    except httpx.InvalidURL:
        match = None
    else:
        match = None if port is not None and not 0 < port < 1 << 16 else match
    if match is None:
        shown = re.sub("//.*@", "//***@", url)  # there may be a password in it
        raise InvalidValue(
            f"{shown!r} is no address of a served model; expected http://host:port/v2/models/NAME, or "
            f".../NAME/versions/V, and a key, if need be, in {KEY}"
        )
    return match[1]


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise InvalidValue(f"{KEY} has characters that no key has; expected printable ASCII without spaces")
    return key


def _client(key: str, timeout: float) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        return httpx.Client(headers=headers, timeout=timeout, mounts=dict.fromkeys(HERE))
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:  # of certificates, and of proxies
        raise ArtifactError(
            f"no connection can be prepared: {reason(error)}\nCheck SSL_CERT_FILE, SSL_CERT_DIR, HTTP_PROXY, "
            "HTTPS_PROXY and ALL_PROXY."
        ) from error
