"""A served model as a classifier, over the REST form of the Open Inference (V2) protocol (KServe, Triton).

It uses httpx rather than `tritonclient`, which requires ml-dtypes <= 0.5.4, the oldest that onnx takes.
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
    BINARY_EXTENSION,
    HEADER_LENGTH,
    Metadata,
    Server,
    error_text,
    one_line,
    parse_json,
    read_logits,
    write_request,
)

API_KEY_VARIABLE = "ROBUST_EXPORT_API_KEY"
URL_PART = r"[^\s/?#@\\]+"
MODEL_URL = re.compile(rf"(https?://{URL_PART}/v2)/models/{URL_PART}(/versions/{URL_PART})?/?", re.IGNORECASE)
LOCAL_HOSTS = ("all://localhost", "all://127.0.0.1", "all://[::1]")  # never through a proxy

CONNECTION_LOST = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
BUSY_STATUSES = (429, 503)
MAX_RETRIES, MAX_WAIT = 5, 60.0  # of a busy server; seconds before one retry
SIZE_INDEPENDENT = (401, 403, 404, 429)  # client errors that a smaller batch gets as well
ADVICE = {
    401: f"Set {API_KEY_VARIABLE} to a key of that server.",
    403: f"Set {API_KEY_VARIABLE} to a key that may use this model.",
    404: "Check the model's name, and that the model is loaded.",
}


class _BatchRefused(ArtifactError):
    """A client error to which a smaller batch may be the answer."""


class RemoteClassifier:
    """Call a served model in batches, over a connection that is kept open.

    If ROBUST_EXPORT_API_KEY is set, every request carries it as bearer token. A request is repeated once if
    its connection is lost, and up to MAX_RETRIES times while the server is busy (429, 503). If the server
    refuses a batch (4xx), it is halved, and so are the batches after it. Redirects are not followed.

    Args:
        url: http(s)://host:port/v2/models/NAME or .../NAME/versions/VERSION. The model has one input,
            FP32 [-1, C, H, W], and the logits, FP32 [-1, K], as first output.
        batch_size: images per request, at most.
        timeout: seconds without a byte from the server after which a request fails.
        binary: send tensors as bytes instead of JSON; None does so if the server supports it.
        sleep: replacement of `time.sleep`.

    Raises:
        InvalidValue: if the address has another form, or an argument is out of range.
        ArtifactError: if the server cannot be reached, refuses, or serves no such model; calls raise it too.
    """

    runtime = "remote"
    precision = "unknown"
    sparta_nodes = 0
    input_shape: tuple[int, ...]
    classes: int
    labels: list[str] | None

    def __init__(
        self, url: str, batch_size: int = 64, timeout: float = 60.0, *, binary: bool | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:  # fmt: skip
        server_url = _server_url(url)
        if batch_size < 1 or not 0 < timeout < math.inf:
            raise InvalidValue(
                f"batch size is {batch_size} and timeout {timeout} s; expected 1 or more, and more than 0 s"
            )
        self.url, self.batch_size, self.timeout = url.rstrip("/"), batch_size, timeout
        self._sleep = sleep
        self._key = _api_key()
        client = self._client = _create_client(self._key, timeout)
        self.close: Callable[[], object] = weakref.finalize(self, client.close)
        self._read_metadata()
        self.binary = self._supports_binary(server_url) if binary is None else binary
        if self.classes < 1:
            self.classes = self._infer(np.zeros((1, *self.input_shape), np.float32)).shape[1]

    def __call__(self, pixels: Pixels) -> Logits:
        if pixels.shape[1:] != self.input_shape:
            raise InvalidValue(
                f"{self.url} takes images {list(self.input_shape)}, not {list(pixels.shape[1:])}"
            )
        outputs = [np.empty((0, self.classes), np.float32)]
        done = 0
        while done < len(pixels):
            batch = pixels[done : done + self.batch_size]
            try:
                outputs.append(self._infer(batch))
                done += len(batch)
            except _BatchRefused:
                if len(batch) == 1:
                    raise
                self.batch_size = len(batch) // 2
        return np.concatenate(outputs)

    def fused_nodes(self) -> int:
        """Return 0: the protocol does not tell which kernels a server runs."""
        return 0

    def _infer(self, pixels: Pixels) -> Logits:
        """Return the logits of one request; any K is valid while `classes` is unknown (-1)."""
        body, headers = write_request(pixels, self._input, self._output, self.binary)
        response = self._send("POST", f"{self.url}/infer", body, headers)
        if not response.is_success:
            raise self._refusal(response)
        try:
            logits = read_logits(response.content, response.headers.get(HEADER_LENGTH), self._output)
        except ValueError as error:
            raise self._invalid_response(response, error) from error
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
            metadata = parse_json(Metadata, response.content)
            self.labels = metadata.labels()
        except ValueError as error:
            raise self._invalid_response(response, error) from error
        inputs, outputs = metadata.inputs, metadata.outputs
        batch, *shape = (inputs[0].shape if len(inputs) == 1 else []) or [0]
        if batch not in (-1, 1) or len(shape) != 3 or min(shape) < 1 or inputs[0].datatype != "FP32":
            received = one_line(", ".join(map(str, inputs))) or "none"
            raise ArtifactError(
                f"{self.url} is not an image classifier: its inputs are {received}; expected one, FP32 "
                "[-1, C, H, W]"
            )
        if not outputs or outputs[0].datatype != "FP32" or len(outputs[0].shape) != 2:
            received = one_line(str(outputs[0])) if outputs else "none"
            raise ArtifactError(f"{self.url}: its first output is {received}; expected logits, FP32 [-1, K]")
        if batch == 1:
            self.batch_size = 1
        self.input_shape, self.classes = tuple(shape), outputs[0].shape[1]
        self._input, self._output = inputs[0].name, outputs[0].name

    def _supports_binary(self, server_url: str) -> bool:
        response = self._send("GET", server_url)
        try:
            return response.is_success and BINARY_EXTENSION in parse_json(Server, response.content).extensions
        except ValueError:  # not V2 metadata, such as a gateway's page; every server takes JSON
            return False

    def _send(
        self, method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        lost = retries = 0
        while True:
            try:
                response = self._client.request(method, url, content=body, headers=headers)
            except httpx.TimeoutException as error:
                raise ArtifactError(f"{self.url} did not answer within {self.timeout:g} s") from error
            except CONNECTION_LOST as error:
                lost += 1
                if lost > 1:
                    raise ArtifactError(
                        f"{self.url}: the connection failed twice: {self._one_line(reason(error))}"
                    ) from error
                continue
            except (httpx.HTTPError, UnicodeError) as error:
                raise ArtifactError(
                    f"{self.url} cannot be reached: {self._one_line(reason(error))}\nCheck that the server "
                    "runs, and whether it speaks http or https. SSL_CERT_FILE sets the trusted certificates."
                ) from error
            wait = retry_after(response.headers.get("Retry-After"), retries)
            if response.status_code not in BUSY_STATUSES or retries == MAX_RETRIES or wait > MAX_WAIT:
                return response
            self._sleep(wait)
            retries += 1

    def _refusal(self, response: httpx.Response) -> ArtifactError:
        status = response.status_code
        if response.has_redirect_location:
            target = self._one_line(response.headers["Location"])
            return ArtifactError(
                f"{self.url} redirects ({status}) to {target}; redirects are not followed: give that address"
            )
        phrase = self._one_line(response.reason_phrase)
        text = f"{self.url} answered {status} {phrase}: {self._error_text(response)}"
        if "Retry-After" in response.headers:
            text += f"\nRetry-After: {self._one_line(response.headers['Retry-After'])}"
        text += f"\n{ADVICE[status]}" if status in ADVICE else ""
        is_batch = response.is_client_error and status not in SIZE_INDEPENDENT
        return (_BatchRefused if is_batch else ArtifactError)(text)

    def _invalid_response(self, response: httpx.Response, error: ValueError) -> ArtifactError:
        return ArtifactError(
            f"{self.url} answered {response.status_code} with an invalid V2 response: "
            f"{self._one_line(reason(error))}\nIt begins: {self._error_text(response)}"
        )

    def _error_text(self, response: httpx.Response) -> str:
        key = self._key.encode()
        return error_text(response.content.replace(key, b"***") if key else response.content) or "(nothing)"

    def _one_line(self, text: str) -> str:
        return one_line(text.replace(self._key, "***") if self._key else text)


def retry_after(value: str | None, attempt: int) -> float:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3); without one, 0.5 * 2 ** attempt.

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


def _server_url(url: str) -> str:
    """Return the address of the server's own metadata."""
    match = MODEL_URL.fullmatch(url)
    try:
        port = httpx.URL(url).port
    except httpx.InvalidURL:
        match = None
    else:
        match = None if port is not None and not 0 < port < 1 << 16 else match
    if match is None:
        shown = re.sub("//.*@", "//***@", url)  # it may hold a password
        raise InvalidValue(
            f"{shown!r} is not the address of a served model; expected http://host:port/v2/models/NAME or "
            f".../NAME/versions/VERSION. A key belongs in {API_KEY_VARIABLE}."
        )
    return match[1]


def _api_key() -> str:
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise InvalidValue(
            f"{API_KEY_VARIABLE} has invalid characters; expected printable ASCII without spaces"
        )
    return key


def _create_client(key: str, timeout: float) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        return httpx.Client(headers=headers, timeout=timeout, mounts=dict.fromkeys(LOCAL_HOSTS))
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:  # bad certificates or proxies
        raise ArtifactError(
            f"the HTTP client cannot start: {reason(error)}\nCheck SSL_CERT_FILE, SSL_CERT_DIR, HTTP_PROXY, "
            "HTTPS_PROXY and ALL_PROXY."
        ) from error
