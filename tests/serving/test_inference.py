"""A server process returns the logits of the file in this process, over both protocols."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from robust_export.data.image_files import open_image, to_bytes
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.remote import RemoteClassifier
from robust_export.serving.grpc_service import MESSAGES, SERVICE
from tests.serving import request_bodies
from tests.serving.bundles import LABELS, SHAPE, Array, expected, images
from tests.serving.servers import TIMEOUT, Server

CLIENT = httpx.Client(timeout=TIMEOUT, limits=httpx.Limits(max_connections=None), trust_env=False)


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    CLIENT.close()


def post(server: Server, body: bytes, headers: dict[str, str] | None = None, model: str = "net") -> Any:
    url = f"{server.rest}/v2/models/{model}/infer"
    return CLIENT.post(url, content=body, headers=headers)


def call(server: Server, method: str, **fields: Any) -> Any:
    with grpc.insecure_channel(server.grpc) as channel:
        method_call = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=MESSAGES[f"{method}Response"].FromString,
        )
        return method_call(MESSAGES[f"{method}Request"](**fields), timeout=TIMEOUT)


def grpc_infer(server: Server, pixels: Array, outputs: tuple[str, ...] = (), raw: bool = True) -> Any:
    tensor: dict[str, Any] = {"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape)}
    if not raw:
        tensor["contents"] = {"fp32_contents": pixels.ravel().tolist()}
    return call(
        server, "ModelInfer", model_name="net", id="7", inputs=[tensor],
        outputs=[{"name": name} for name in outputs], raw_input_contents=[pixels.tobytes()] if raw else [],
    )  # fmt: skip


def test_client_gets_the_logits_of_the_file(server: Server, net: Path) -> None:
    classifier = OnnxRuntimeClassifier(net / "model.onnx")
    for binary in (True, False):
        remote = RemoteClassifier(f"{server.rest}/v2/models/net", binary=binary)
        assert remote.input_shape == SHAPE
        assert remote.labels == LABELS
        np.testing.assert_array_equal(remote(images(5)), classifier(images(5)))
        np.testing.assert_allclose(remote(images(100)), expected(images(100)), rtol=1e-5, atol=1e-4)


def test_json_and_binary_outputs(server: Server) -> None:
    pixels, names = images(4), ("labels", "probabilities", "logits")
    truth = expected(pixels)
    exact = np.exp(truth) / np.exp(truth).sum(1, keepdims=True)
    for body, headers in (
        (request_bodies.as_json(pixels, *names), {}),
        request_bodies.as_bytes(pixels, *names),
    ):
        response = post(server, body, headers)
        assert response.status_code == 200
        outputs = request_bodies.read(response.content, response.headers)
        assert list(outputs) == list(names)
        np.testing.assert_allclose(outputs["logits"], truth, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(outputs["probabilities"], exact, rtol=1e-4, atol=1e-6)
        assert outputs["labels"] == [LABELS[i] for i in truth.argmax(1)]


def test_default_output_is_logits(server: Server) -> None:
    response = post(server, request_bodies.as_json(images(1), id="one"))
    answer = response.json()
    assert [output["name"] for output in answer["outputs"]] == ["logits"]
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("one", "net", "1")


def test_nested_data_equal_flat_data(server: Server) -> None:
    pixels = images(2)
    flat = post(server, request_bodies.as_json(pixels)).json()
    nested = {"inputs": [request_bodies.tensor(pixels, data=pixels.tolist())]}
    assert post(server, json.dumps(nested).encode()).json()["outputs"] == flat["outputs"]


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_outputs(server: Server, raw: bool) -> None:
    pixels = images(3)
    answer = grpc_infer(server, pixels, ("logits", "labels"), raw)
    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(list(answer.outputs[0].shape))
    np.testing.assert_allclose(logits, expected(pixels), rtol=1e-5, atol=1e-4)
    texts = [LABELS[i].encode() for i in expected(pixels).argmax(1)]
    assert answer.raw_output_contents[1] == request_bodies.elements(*texts)
    assert (answer.id, answer.model_version) == ("7", "1")
    assert [output.name for output in grpc_infer(server, pixels, (), raw).outputs] == ["logits"]


def test_grpc_metadata(server: Server) -> None:
    assert call(server, "ServerLive").live
    assert call(server, "ServerReady").ready
    assert call(server, "ModelReady", name="net", version="1").ready
    assert "binary_tensor_data" in call(server, "ServerMetadata").extensions
    metadata = call(server, "ModelMetadata", name="net")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("pixels", "FP32", [-1, 3, 8, 8])
    ]
    assert [t.name for t in metadata.outputs] == ["logits", "probabilities", "labels"]


def encoded_images() -> list[bytes]:
    """Return encoded images with EXIF rotation, transparency, 16 bits, and not square."""
    random = np.random.default_rng(5)
    rgb = Image.fromarray(random.integers(0, 256, (20, 31, 3), np.uint8))
    rgba = Image.fromarray(random.integers(0, 256, (9, 8, 4), np.uint8))
    grey = Image.fromarray(random.integers(0, 65536, (8, 8), np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = []
    for image, kind, options in (
        (rgb, "JPEG", {"exif": turned}), (rgb, "PNG", {}), (rgba, "PNG", {}), (grey, "PNG", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


def test_images_are_decoded_as_in_training(server: Server) -> None:
    import torch

    files = encoded_images()
    uint8 = np.stack([to_bytes(open_image(file), 8, 3) for file in files])
    pixels = torch.from_numpy(uint8).float().div_(255).numpy()  # as robust_export.data.datasets does
    truth = request_bodies.read(*_parts(post(server, *request_bodies.as_bytes(pixels))))["logits"]
    raw = request_bodies.elements(*files)
    entry = {"name": "image", "datatype": "BYTES", "shape": [4], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [entry]}).encode()
    binary = post(server, head + raw, {request_bodies.HEADER_LENGTH: str(len(head))})
    texts = [base64.b64encode(file).decode() for file in files]
    entry = {"name": "image", "datatype": "BYTES", "shape": [4], "data": texts}
    for response in (binary, post(server, json.dumps({"inputs": [entry]}).encode())):
        np.testing.assert_array_equal(request_bodies.read(*_parts(response))["logits"], truth)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [4], "contents": {"bytes_contents": files}}
    answer = call(server, "ModelInfer", model_name="net", inputs=[tensor])
    assert answer.raw_output_contents[0] == truth.astype("<f4").tobytes()


def _parts(response: Any) -> tuple[bytes, Any]:
    assert response.status_code == 200, response.text
    return response.content, response.headers


def test_concurrent_requests_get_their_own_logits(server: Server) -> None:
    """200 requests with different images by 32 threads share batches."""

    def infer(number: int) -> None:
        pixels = images(1, seed=number)
        for model in ("slow", "net"):
            body, headers = request_bodies.as_bytes(pixels)
            logits = request_bodies.read(*_parts(post(server, body, headers, model)))["logits"]
            np.testing.assert_allclose(logits, expected(pixels), rtol=1e-5, atol=1e-4)

    count, total = "robust_export_batch_images_count", "robust_export_batch_images_sum"
    before = server.metric(count, model="slow"), server.metric(total, model="slow")
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(infer, range(200)))
    batches = server.metric(count, model="slow") - before[0]
    assert server.metric(total, model="slow") - before[1] == 200
    assert batches < 150


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/v2", {"name", "version", "extensions"}),
        ("/v2/models", {"models"}),
        ("/v2/health/live", {"live"}),
        ("/v2/health/ready", {"ready"}),
        ("/v2/models/net", {"name", "versions", "platform", "inputs", "outputs", "parameters"}),
        ("/v2/models/net/versions/1", {"name", "versions", "platform", "inputs", "outputs", "parameters"}),
        ("/v2/models/net/ready", {"name", "ready"}),
        ("/v2/models/net/versions/1/ready", {"name", "ready"}),
        ("/openapi.json", {"openapi", "info", "paths", "components"}),
    ],
)  # fmt: skip
def test_get_endpoints(server: Server, path: str, keys: set[str]) -> None:
    response = CLIENT.get(server.rest + path)
    assert response.status_code == 200
    assert response.json().keys() == keys


def test_request_is_logged_and_counted(server: Server) -> None:
    name = "robust_export_requests_total"
    before = server.metric(name, model="net", status="400", protocol="rest")
    response = post(server, b"{}", {"X-Request-Id": "mine-1"})
    assert response.headers["X-Request-Id"] == "mine-1"
    (line,) = server.log.wait_for("request", id="mine-1")
    assert (line["status"], line["method"], line["path"]) == (400, "POST", "/v2/models/net/infer")
    assert line["error"] == response.json()["error"]
    assert server.metric(name, model="net", status="400", protocol="rest") == before + 1
    odd = post(server, b"{}", {"X-Request-Id": "not, plain"}).headers["X-Request-Id"]
    assert odd.isalnum()
    assert len(odd) == 32


def test_ready_message_lists_the_models(server: Server) -> None:
    assert [model["name"] for model in server.facts["models"]] == ["net", "slow"]
    assert server.rest.startswith("http://127.0.0.1:")
