"""A small server of the Open Inference (V2) protocol, independent of the client that it tests."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Fault = Literal[
    "rows",  # one row too few
    "shape",  # a shape that does not fit the data
    "nan",  # the first row is NaN
    "permuted",  # reads each image as [H, W, C]
    "limit",  # 400 for more than LIMIT images
    "truncated",  # without the last bytes, or numbers, of the data
    "cut",  # closes the connection in the middle of the response
    "500",  # for every inference
    "401",
    "busy",  # 429, Retry-After: 2, for the first two inferences
    "closed once",  # no response to the first inference
    "closed",  # no response to any
    "slow",  # no response before the server stops
    "moved",  # redirects to another host
    "html",  # an HTML page with status 200
    "more",  # another output before the logits
    "nested",  # JSON data as a list of rows instead of a flat list
]
NAME, LIMIT = "net", 4
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Request:
    """A request to the server."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    port: int  # of the client; one per connection
    rows: int = 0  # images
    binary: bool = False  # the images came as bytes
    binary_response: bool = False


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for them

    def __init__(self, answer: Callable[[_Handler, bytes], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected or spoke TLS."""

    def stop(self) -> None:
        self.shutdown()
        for connection in self.connections:
            with suppress(OSError):  # already closed
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self.server.answer(self, b"")

    def do_POST(self) -> None:
        self.server.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(
        self, status: int, content: Any, headers: Mapping[str, str] | None = None, missing: int = 0
    ) -> None:
        """Send JSON or bytes; close the connection before the last `missing` bytes."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) - missing])
        if missing:
            self.close_connection = True


@contextmanager
def serve(
    function: Callable[[Array], Array], *, input_shape: Sequence[int], classes: int,
    fault: Fault | None = None, binary: bool = True, metadata: Mapping[str, Any] | None = None,
    requests: list[Request] | None = None,
) -> Iterator[str]:  # fmt: skip
    """Serve a function on localhost; yield the server's address. The model is at {address}/v2/models/net.

    Args:
        function: float32 [N, C, H, W] to float32 [N, K].
        input_shape: C, H, W.
        classes: K.
        binary: support the binary tensor extension; otherwise refuse binary requests.
        metadata: entries that replace those of the model's metadata.
        requests: receives every request in order.
    """
    assert fault is None or fault in get_args(Fault), fault
    model_metadata = {
        "name": NAME,
        "versions": ["1"],
        "platform": "test",
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, *input_shape]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, classes]}],
        **(metadata or {}),
    }
    log = [] if requests is None else requests
    stopping = threading.Event()

    def answer(handler: _Handler, body: bytes) -> None:
        path = handler.path
        headers = {name.lower(): value for name, value in handler.headers.items()}
        split = int(headers.get(LENGTH.lower(), len(body)))
        request: dict[str, Any] = {"inputs": [{"shape": [0]}], "outputs": []}
        if body:
            request = json.loads(body[:split])
        rows, is_binary = request["inputs"][0]["shape"][0], LENGTH.lower() in headers
        binary_response = any(entry.get("parameters", {}).get("binary_data") for entry in request["outputs"])
        received = Request(
            handler.command, path, headers, handler.client_address[1], rows, is_binary, binary_response
        )
        log.append(received)
        model = path.removesuffix("/infer").removesuffix("/versions/1")
        if received.method == "GET" and path == "/v2":
            extensions = ["binary_tensor_data"] if binary else []
            handler.reply(200, {"name": "test", "version": "1", "extensions": extensions})
        elif model != f"/v2/models/{NAME}":
            handler.reply(404, {"error": f"there is no {path} here"})
        elif received.method == "GET":
            handler.reply(200, model_metadata)
        elif is_binary and not binary:
            handler.reply(400, {"error": "unexpected bytes after the JSON"})
        else:
            try:
                infer(handler, request, body[split:])
            except (AssertionError, ValueError) as error:
                handler.reply(500, {"error": f"invalid request: {error!r}"})

    def infer(handler: _Handler, request: Any, raw: bytes) -> None:
        (tensor,) = request["inputs"]
        count = sum(received.method == "POST" for received in log)
        if fault == "500":
            return handler.reply(500, {"error": "the model failed"})
        if fault == "401":
            return handler.reply(401, {"error": "unauthenticated"})
        if fault == "busy" and count <= 2:
            return handler.reply(429, {"error": "one at a time"}, {"Retry-After": "2"})
        if fault == "limit" and tensor["shape"][0] > LIMIT:
            return handler.reply(400, {"error": f"batch-size must be <= {LIMIT}"})
        if fault == "moved":
            return handler.reply(307, b"", {"Location": f"http://elsewhere.invalid{handler.path}"})
        if fault == "html":
            return handler.reply(200, b"<html>Welcome to the gateway</html>")
        if fault == "slow":
            stopping.wait()
        if fault in ("slow", "closed") or (fault == "closed once" and count == 1):
            handler.close_connection = True
            return None
        assert tensor["datatype"] == "FP32"
        assert tensor["name"] == model_metadata["inputs"][0]["name"]
        if "data" in tensor:
            pixels = np.array(tensor["data"], "f4").reshape(tensor["shape"])
        else:
            assert tensor["parameters"]["binary_data_size"] == len(raw)
            pixels = np.frombuffer(raw, "<f4").reshape(tensor["shape"])
        if fault == "permuted":
            n, c, h, w = pixels.shape
            pixels = pixels.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        logits = np.array(function(np.ascontiguousarray(pixels)), np.float32)
        if fault == "nan":
            logits[0] = np.nan
        if fault == "rows":
            logits = logits[:-1]
        (requested,) = request["outputs"]
        assert requested["name"] == model_metadata["outputs"][0]["name"]
        outputs = [(requested["name"], logits)]
        if fault == "more":
            outputs.insert(0, ("features", np.ones((len(logits), 2), np.float32)))
        return send(handler, outputs, bool(requested.get("parameters", {}).get("binary_data")))

    def send(handler: _Handler, outputs: list[tuple[str, Array]], as_bytes: bool) -> None:
        entries: list[dict[str, Any]] = []
        tail = b""
        for name, values in outputs:
            shape = [len(values) + 1, *values.shape[1:]] if fault == "shape" else list(values.shape)
            entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": shape}
            if as_bytes:
                entry["parameters"] = {"binary_data_size": values.nbytes}
                tail += values.astype("<f4").tobytes()
            else:
                data = values.tolist() if fault == "nested" else values.ravel().tolist()
                entry["data"] = data[:-1] if fault == "truncated" else data
            entries.append(entry)
        header = json.dumps({"model_name": NAME, "outputs": entries}).encode()
        if fault == "truncated" and as_bytes:
            tail = tail[:-4]
        headers = {LENGTH: str(len(header))} if as_bytes else {}
        handler.reply(200, header + tail, headers, missing=8 if fault == "cut" else 0)

    server = _Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stopping.set()
        server.stop()
        thread.join()
