"""Whatever is sent, the answer is right, or a V2 error with a 4xx: tables of what is wrong."""

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
from tests.serving.bundles import PLANE, expected, images
from tests.serving.request_bodies import LENGTH
from tests.serving.servers import App, Reply

INFER = "/v2/models/net/infer"
ONE = images(1)


def error(reply: Reply) -> str:
    """Return what a V2 error object says, and see that it is one."""
    said = reply.json()
    assert said.keys() == {"error"}
    assert said["error"]
    assert said["error"].isprintable()
    assert len(said["error"]) < 1000
    return str(said["error"])


def healthy(app: App) -> None:
    """See that the next request is answered, and right, and nothing of an earlier one is left."""
    reply = app.ask("POST", INFER, *request_bodies.as_bytes(ONE))
    np.testing.assert_allclose(
        request_bodies.read(reply.content, reply.headers)["logits"], expected(ONE), atol=1e-4
    )
    assert app.service.held == 0
    assert app.service.models["net"].accepted == 0


def asked(**changes: Any) -> bytes:
    return json.dumps({"inputs": [request_bodies.tensor(ONE, **changes)]}).encode()


def image(content: bytes, **changes: Any) -> bytes:
    text = base64.b64encode(content).decode()
    entry = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text], **changes}
    return json.dumps({"inputs": [entry]}).encode()


def png(width: int, height: int) -> bytes:
    """Return a valid black PNG of any size, in very few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row * 1000) for _ in range(height // 1000)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def photo(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


FULL = ONE.ravel().tolist()
WRONG: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no V2 request"),
    "no JSON": (b"{", "no V2 request"),
    "not UTF-8": (b'{"id": "\xff"}', "no V2 request"),
    "another JSON": (b"[1]", "no V2 request"),
    "deep": (b"[" * 100_000, "no V2 request"),
    "no inputs": (b'{"inputs": []}', "the inputs are none"),
    "inputs of another kind": (b'{"inputs": {"pixels": 1}}', "inputs"),
    "two inputs": (json.dumps({"inputs": [request_bodies.tensor(ONE)] * 2}).encode(), "pixels, pixels"),
    "another input": (asked(name="../../etc/passwd"), "../../etc/passwd"),
    "another type": (asked(datatype="FP64"), "FP64"),
    "another plane": (asked(shape=[1, 8, 8, 3]), "[N, 3, 8, 8]"),
    "no images": (asked(shape=[0, *PLANE], data=[]), "at least one image"),
    "less than none": (asked(shape=[-1, *PLANE]), "at least one image"),
    "a shape of texts": (asked(shape=["1", *PLANE]), "shape"),
    "a shape of fractions": (asked(shape=[1.5, *PLANE]), "shape"),
    "a huge shape": (asked(shape=[10**18, *PLANE]), "at most"),
    "a shape beyond 64 bits": (asked(shape=[10**40, *PLANE]), "at most"),
    "a long shape": (asked(shape=[1] * 10_000), "shape"),
    "more images than data": (asked(shape=[2, *PLANE]), "192 elements; expected 384"),
    "no data": (asked(data=None), "no data"),
    "too little data": (asked(data=FULL[:-1]), "191 elements"),
    "texts": (asked(data=["0.5"] * 192), "not all numbers"),
    "booleans": (asked(data=[True] * 192), "not all numbers"),
    "nulls": (asked(data=[None] * 192), "not all numbers"),
    "objects": (asked(data=[{}] * 192), "not all numbers"),
    "ragged": (asked(data=[[FULL]]), "not nested"),
    "half nested": (asked(data=[[[FULL]]]), "not nested"),
    "negative": (asked(data=[-1e-6, *FULL[1:]]), "not in [0, 1]"),
    "255": (asked(data=[255.0, *FULL[1:]]), "not in [0, 1]"),
    "NaN": (asked(data=[float("nan"), *FULL[1:]]), "not in [0, 1]"),
    "infinity": (asked(data=[float("inf"), *FULL[1:]]), "not in [0, 1]"),
    "beyond float64": (asked(data=[10**400, *FULL[1:]]), "not in [0, 1]"),
    "another output": (request_bodies.as_json(ONE, "features"), "features"),
    "an output twice": (request_bodies.as_json(ONE, "logits", "logits"), "each once"),
    "no name of an output": (b'{"inputs": [], "outputs": [{}]}', "outputs"),
    "binary_data of another kind": (
        request_bodies.as_json(ONE, outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]),
        "binary_data is 1",
    ),
    "a long id": (request_bodies.as_json(ONE, id="x" * 1000), "id"),
    "no image": (image(b"hello"), "no PNG or JPEG"),
    "no base64": (image(b"", data=["*"]), "no base64"),
    "an image as a number": (image(b"", data=[1]), "no base64"),
    "an image of another format": (image(photo("BMP")), "no PNG or JPEG"),
    "a truncated PNG": (image(photo("PNG")[:-100]), "cannot be decoded"),
    "a truncated JPEG": (image(photo("JPEG")[:-100]), "cannot be decoded"),
    "an image of nothing": (image(png(0, 0)), "cannot be decoded"),
    "a decompression bomb": (image(png(30_000, 3000)), "pixels"),
    "images for one": (image(photo("PNG"), shape=[2]), "1 elements"),
    "an image with a plane": (image(photo("PNG"), shape=[1, 1]), "BYTES [N]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(app: App, name: str) -> None:
    body, words = WRONG[name]
    reply = app.ask("POST", INFER, body)
    assert reply.status in (400, 413)
    assert words in error(reply)
    healthy(app)


def binary(**changes: Any) -> tuple[bytes, dict[str, str]]:
    raw = changes.pop("raw", ONE.tobytes())
    length = changes.pop("length", None)
    entry = request_bodies.tensor(ONE, data=None, parameters={"binary_data_size": len(raw)}) | changes
    head = json.dumps({"inputs": [entry]}).encode()
    return head + raw, {LENGTH: str(len(head)) if length is None else length}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (binary(length="x"), "Inference-Header-Content-Length is x"),
        (binary(length="-1"), "Inference-Header-Content-Length is -1"),
        (binary(length="999999"), "Inference-Header-Content-Length is 999999"),
        (binary(length="9" * 5000), "Inference-Header-Content-Length is 999"),
        (binary(length="0"), "no V2 request"),
        (binary(length="\xb2"), "Inference-Header-Content-Length"),
        (binary(raw=ONE.tobytes()[:-1]), "767 bytes of data; expected 768"),
        (binary(raw=ONE.tobytes() + b"1"), "769 bytes of data"),
        (binary(parameters={"binary_data_size": 700}), "68 bytes after the JSON"),
        (binary(parameters={"binary_data_size": 10**9}), "binary_data_size"),
        (binary(parameters={"binary_data_size": -4}), "binary_data_size"),
        (binary(parameters={"binary_data_size": True}), "binary_data_size"),
        (binary(parameters={"binary_data_size": "768"}), "binary_data_size"),
        (binary(data=[0.5]), "both"),
        (binary(shape=[10**12, *PLANE]), "at most"),
        (binary(raw=np.full_like(ONE, np.nan).tobytes()), "not in [0, 1]"),
        (binary(raw=np.full_like(ONE, np.inf).tobytes()), "not in [0, 1]"),
        (binary(name="image", datatype="BYTES", shape=[1], raw=b"\xff\xff\xff\xff"), "1 elements"),
        (binary(name="image", datatype="BYTES", shape=[1], raw=b"\x01"), "1 elements"),
        (binary(name="image", datatype="BYTES", shape=[2], raw=request_bodies.elements(b"1")), "1 elements"),
        (binary(name="image", datatype="BYTES", shape=[1], raw=request_bodies.elements(b"", b"")), "1 elements"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_bytes(app: App, body: tuple[bytes, dict[str, str]], words: str) -> None:
    reply = app.ask("POST", INFER, *body)
    assert reply.status in (400, 413)
    assert words in error(reply)
    healthy(app)


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
def test_addresses_that_are_none(app: App, method: str, path: str, status: int) -> None:
    reply = app.ask(method, path, b"{}")
    assert reply.status == status
    error(reply)


def test_a_body_beyond_the_limit_is_not_read(app: App) -> None:
    declared = app.ask("POST", INFER, b"{}", {"Content-Length": str(10**12)})
    assert declared.status == 413
    assert "16 MiB" in error(declared)
    sent = app.ask("POST", INFER, bytes((16 << 20) + 1))
    assert sent.status == 413
    packed = app.ask("POST", INFER, zlib.compress(asked()), {"Content-Encoding": "deflate"})
    assert packed.status == 415
    healthy(app)


def test_all_images_together_have_only_so_many_pixels(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_PIXELS", 3000)
    file = photo("PNG")  # 1,200 pixels
    text = base64.b64encode(file).decode()
    assert app.ask("POST", INFER, image(file, shape=[2], data=[text] * 2)).status == 200
    reply = app.ask("POST", INFER, image(file, shape=[3], data=[text] * 3))
    assert reply.status == 400
    assert "image 2" in error(reply)
    assert "at most 600 are read" in error(reply)


def test_a_client_that_goes_away(app: App) -> None:
    body = asked()

    async def partly() -> None:
        sent: list[Any] = []
        messages = [
            {"type": "http.request", "body": body[:50], "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope: dict[str, Any] = {
            "type": "http", "method": "POST", "path": INFER, "raw_path": b"", "query_string": b"",
            "headers": [], "scheme": "http", "http_version": "1.1", "root_path": "", "server": None,
            "client": None,
        }  # fmt: skip
        await app.app(scope, receive, send)
        assert sent[0]["status"] == 400

    app.loop.run_until_complete(partly())
    healthy(app)
