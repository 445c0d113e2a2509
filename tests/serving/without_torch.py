"""Serving without torch: `make test-serve` runs this with `robust-export[serve]` and tritonclient installed.

NVIDIA's client requires older versions of ml-dtypes and protobuf than the other packages of the development
environment, so it has an environment of its own. It is the independent client of both protocols.
"""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.serving.bundles import LABELS, expected, images, linear_bundle
from tests.serving.servers import Server, start


def main() -> None:
    for package in ("torch", "torchvision", "timm", "sklearn", "scipy"):
        assert importlib.util.find_spec(package) is None, f"{package} is installed"
    with tempfile.TemporaryDirectory() as name:
        bundle = linear_bundle(Path(name) / "net")
        with start("--model", bundle, "--workers", "2") as server:
            import tritonclient.grpc
            import tritonclient.http

            check_client(tritonclient.http, server.rest.removeprefix("http://"), binary_data=True)
            check_client(tritonclient.http, server.rest.removeprefix("http://"), binary_data=False)
            check_client(tritonclient.grpc, server.grpc)
            check_page(server)
            check_missing_extra_is_reported()
            check_torch_is_not_loaded(server)
            assert server.terminate() == 0
    print("served REST and gRPC without torch; tritonclient received the right logits")


def check_client(package: Any, address: str, **options: bool) -> None:
    """Call every method by one of NVIDIA's clients, and compare the outputs."""
    client = package.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net", "1")
    assert client.get_model_metadata("net")
    pixels = images(5)
    tensor = package.InferInput("pixels", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels, **options)
    names = ("logits", "probabilities", "labels")
    outputs = [package.InferRequestedOutput(name, **options) for name in names]
    result = client.infer("net", [tensor], outputs=outputs, request_id="7")
    logits = expected(pixels)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(1), 1, rtol=1e-5)
    labels = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("labels")]
    assert labels == [LABELS[i] for i in logits.argmax(1)]
    file = io.BytesIO()
    square = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(square).save(file, "PNG")
    tensor = package.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([file.getvalue()], object))
    pixels = square.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    received = client.infer("net", [tensor]).as_numpy("logits")
    np.testing.assert_allclose(received, expected(pixels), rtol=1e-5, atol=1e-4)
    client.close()


def check_page(server: Server) -> None:
    response = httpx.get(server.rest, trust_env=False)
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "<script" in response.text


def check_missing_extra_is_reported() -> None:
    """Check that commands that need torch say in one line what to install."""
    for words in (["train"], ["models"], ["demo"]):
        command = [sys.executable, "-m", "robust_export", *words]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 1
        assert "pip install 'robust-export[train]'" in result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr


def check_torch_is_not_loaded(server: Server) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()


if __name__ == "__main__":
    main()
