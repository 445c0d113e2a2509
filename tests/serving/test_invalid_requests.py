"""Invalid REST requests: each gets a V2 error with status 4xx that names the fault."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robust_export.serving import tensors
from tests.serving import request_bodies
from tests.serving.bundles import SHAPE, expected, images
from tests.serving.request_bodies import HEADER_LENGTH
from tests.serving.servers import App, Response, http_scope

INFER = "/v2/models/net/infer"
ONE = images(1)


def read_error(response: Response) -> str:
    """Return the text of a V2 error, which must be short and printable."""
    body = response.json()
    assert body.keys() == {"error"}
    text = str(body["error"])
    assert text
    assert text.isprintable()
    assert len(text) < 1000
    return text


def check_healthy(app: App) -> None:
    """Check that the next request gets the right logits and no earlier one is still counted."""
    response = app.request("POST", INFER, *request_bodies.as_bytes(ONE))
    np.testing.assert_allclose(
        request_bodies.read(response.content, response.headers)["logits"], expected(ONE), atol=1e-4
    )
    assert app.service.buffered_bytes == 0
    assert app.service.models["net"].accepted == 0


def json_request(**changes: Any) -> bytes:
    return json.dumps({"inputs": [request_bodies.tensor(ONE, **changes)]}).encode()


def image_request(content: bytes, **changes: Any) -> bytes:
    text = base64.b64encode(content).decode()
    entry = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text], **changes}
    return json.dumps({"inputs": [entry]}).encode()


def png(width: int, height: int) -> bytes:
    """Return a valid black PNG of any size in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row * 1000) for _ in range(height // 1000)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def noise_image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


FULL = ONE.ravel().tolist()
ONE_ELEMENT, TWO_ELEMENTS = request_bodies.elements(b"1"), request_bodies.elements(b"", b"")
INVALID: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a V2 request"),
    "no JSON": (b"{", "not a V2 request"),
    "not UTF-8": (b'{"id": "\xff"}', "not a V2 request"),
    "another JSON": (b"[1]", "not a V2 request"),
    "deep": (b"[" * 100_000, "not a V2 request"),
    "no inputs": (b'{"inputs": []}', "the inputs are none"),
    "inputs of another kind": (b'{"inputs": {"pixels": 1}}', "inputs"),
    "two inputs": (json.dumps({"inputs": [request_bodies.tensor(ONE)] * 2}).encode(), "pixels, pixels"),
    "another input": (json_request(name="../../etc/passwd"), "../../etc/passwd"),
    "another type": (json_request(datatype="FP64"), "FP64"),
    "another shape": (json_request(shape=[1, 8, 8, 3]), "[N, 3, 8, 8]"),
    "no images": (json_request(shape=[0, *SHAPE], data=[]), "at least one image"),
    "less than none": (json_request(shape=[-1, *SHAPE]), "at least one image"),
    "a shape of texts": (json_request(shape=["1", *SHAPE]), "shape"),
    "a shape of fractions": (json_request(shape=[1.5, *SHAPE]), "shape"),
    "a huge shape": (json_request(shape=[10**18, *SHAPE]), "at most"),
    "a shape beyond 64 bits": (json_request(shape=[10**40, *SHAPE]), "at most"),
    "a long shape": (json_request(shape=[1] * 10_000), "shape"),
    "more images than data": (json_request(shape=[2, *SHAPE]), "192 elements; expected 384"),
    "no data": (json_request(data=None), "no data"),
    "too little data": (json_request(data=FULL[:-1]), "191 elements"),
    "texts": (json_request(data=["0.5"] * 192), "not all numbers"),
    "booleans": (json_request(data=[True] * 192), "not all numbers"),
    "nulls": (json_request(data=[None] * 192), "not all numbers"),
    "objects": (json_request(data=[{}] * 192), "not all numbers"),
    "ragged": (json_request(data=[[FULL]]), "not nested"),
    "half nested": (json_request(data=[[[FULL]]]), "not nested"),
    "negative": (json_request(data=[-1e-6, *FULL[1:]]), "not in [0, 1]"),
    "255": (json_request(data=[255.0, *FULL[1:]]), "not in [0, 1]"),
    "NaN": (json_request(data=[float("nan"), *FULL[1:]]), "not in [0, 1]"),
    "infinity": (json_request(data=[float("inf"), *FULL[1:]]), "not in [0, 1]"),
    "beyond float64": (json_request(data=[10**400, *FULL[1:]]), "not in [0, 1]"),
    "another output": (request_bodies.as_json(ONE, "features"), "features"),
    "an output twice": (request_bodies.as_json(ONE, "logits", "logits"), "each once"),
    "no name of an output": (b'{"inputs": [], "outputs": [{}]}', "outputs"),
    "binary_data of another kind": (
        request_bodies.as_json(ONE, outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]),
        "binary_data is 1",
    ),
    "a long id": (request_bodies.as_json(ONE, id="x" * 1000), "id"),
    "no image": (image_request(b"hello"), "neither a PNG nor a JPEG"),
    "not base64": (image_request(b"", data=["*"]), "not base64"),
    "an image as a number": (image_request(b"", data=[1]), "not base64"),
    "an image of another format": (image_request(noise_image("BMP")), "neither a PNG nor a JPEG"),
    "a truncated PNG": (image_request(noise_image("PNG")[:-100]), "cannot be decoded"),
    "a truncated JPEG": (image_request(noise_image("JPEG")[:-100]), "cannot be decoded"),
    "an image of nothing": (image_request(png(0, 0)), "cannot be decoded"),
    "a decompression bomb": (image_request(png(30_000, 3000)), "pixels"),
    "one image for two": (image_request(noise_image("PNG"), shape=[2]), "1 elements"),
    "an image with channels": (image_request(noise_image("PNG"), shape=[1, 1]), "BYTES [N]"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_invalid_json_request(app: App, name: str) -> None:
    body, words = INVALID[name]
    response = app.request("POST", INFER, body)
    assert response.status in (400, 413)
    assert words in read_error(response)
    check_healthy(app)


def binary_request(**changes: Any) -> tuple[bytes, dict[str, str]]:
    raw = changes.pop("raw", ONE.tobytes())
    length = changes.pop("length", None)
    entry = request_bodies.tensor(ONE, data=None, parameters={"binary_data_size": len(raw)}) | changes
    head = json.dumps({"inputs": [entry]}).encode()
    return head + raw, {HEADER_LENGTH: str(len(head)) if length is None else length}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (binary_request(length="x"), "Inference-Header-Content-Length is x"),
        (binary_request(length="-1"), "Inference-Header-Content-Length is -1"),
        (binary_request(length="999999"), "Inference-Header-Content-Length is 999999"),
        (binary_request(length="9" * 5000), "Inference-Header-Content-Length is 999"),
        (binary_request(length="0"), "not a V2 request"),
        (binary_request(length="\xb2"), "Inference-Header-Content-Length"),
        (binary_request(raw=ONE.tobytes()[:-1]), "767 bytes of data; expected 768"),
        (binary_request(raw=ONE.tobytes() + b"1"), "769 bytes of data"),
        (binary_request(parameters={"binary_data_size": 700}), "68 bytes after the JSON"),
        (binary_request(parameters={"binary_data_size": 10**9}), "binary_data_size"),
        (binary_request(parameters={"binary_data_size": -4}), "binary_data_size"),
        (binary_request(parameters={"binary_data_size": True}), "binary_data_size"),
        (binary_request(parameters={"binary_data_size": "768"}), "binary_data_size"),
        (binary_request(data=[0.5]), "both"),
        (binary_request(shape=[10**12, *SHAPE]), "at most"),
        (binary_request(raw=np.full_like(ONE, np.nan).tobytes()), "not in [0, 1]"),
        (binary_request(raw=np.full_like(ONE, np.inf).tobytes()), "not in [0, 1]"),
        (binary_request(name="image", datatype="BYTES", shape=[1], raw=b"\xff\xff\xff\xff"), "1 elements"),
        (binary_request(name="image", datatype="BYTES", shape=[1], raw=b"\x01"), "1 elements"),
        (binary_request(name="image", datatype="BYTES", shape=[2], raw=ONE_ELEMENT), "1 elements"),
        (binary_request(name="image", datatype="BYTES", shape=[1], raw=TWO_ELEMENTS), "1 elements"),
    ],
)  # fmt: skip
def test_invalid_binary_request(app: App, body: tuple[bytes, dict[str, str]], words: str) -> None:
    response = app.request("POST", INFER, *body)
    assert response.status in (400, 413)
    assert words in read_error(response)
    check_healthy(app)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/../../../etc/passwd", 404),
        ("GET", "/v2/models/net/../../manifest.json", 404),
        ("GET", "/v2/models/net/versions/2", 404),
        ("GET", "/v2/models/net/versions/1/ready/x", 404),
        ("POST", "/v2/models/net\x00/infer", 404),
        ("POST", "/v2/models/" + "x" * 10_000 + "/infer", 404),
        ("POST", "/v2/models/net/versions/2/infer", 404),
        ("GET", "/v2/models/net/infer", 405),
        ("DELETE", "/v2/models/net", 405),
        ("POST", "/v2/repository/models/net/load", 404),
    ],
)
def test_unknown_path_or_method(app: App, method: str, path: str, status: int) -> None:
    response = app.request(method, path, b"{}")
    assert response.status == status
    read_error(response)


def test_large_or_encoded_body_is_refused(app: App) -> None:
    declared = app.request("POST", INFER, b"{}", {"Content-Length": str(10**12)})
    assert declared.status == 413
    assert "16 MiB" in read_error(declared)
    sent = app.request("POST", INFER, bytes((16 << 20) + 1))
    assert sent.status == 413
    packed = app.request("POST", INFER, zlib.compress(json_request()), {"Content-Encoding": "deflate"})
    assert packed.status == 415
    check_healthy(app)


def test_pixels_of_all_images_are_limited(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_PIXELS", 3000)
    file = noise_image("PNG")  # 1,200 pixels
    text = base64.b64encode(file).decode()
    assert app.request("POST", INFER, image_request(file, shape=[2], data=[text] * 2)).status == 200
    response = app.request("POST", INFER, image_request(file, shape=[3], data=[text] * 3))
    assert response.status == 400
    assert "image 2" in read_error(response)
    assert "the limit is 600" in read_error(response)


def test_client_that_disconnects(app: App) -> None:
    body = json_request()

    async def send_part() -> None:
        sent: list[Any] = []
        messages = [
            {"type": "http.request", "body": body[:50], "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await app.app(http_scope("POST", INFER), receive, send)
        assert sent[0]["status"] == 400

    app.loop.run_until_complete(send_part())
    check_healthy(app)
