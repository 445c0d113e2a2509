"""Serving without torch, which `make test-serve` runs where `robust-export[serve]` and tritonclient are.

NVIDIA's client is in no other environment of ours: it holds ml-dtypes and protobuf at versions that other
packages go beyond. It is the independent client of both protocols.
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
        assert importlib.util.find_spec(package) is None, f"{package} is here"
    with tempfile.TemporaryDirectory() as name:
        bundle = linear_bundle(Path(name) / "net")
        with start(Path(name), "--model", bundle, "--workers", "2") as server:
            import tritonclient.grpc
            import tritonclient.http

            ask(tritonclient.http, server.rest.removeprefix("http://"), binary_data=True)
            ask(tritonclient.http, server.rest.removeprefix("http://"), binary_data=False)
            ask(tritonclient.grpc, server.grpc)
            shows_the_page(server)
            says_what_is_missing()
            assert_no_torch(server)
            assert server.end() == 0
    print("served REST and gRPC without torch, and tritonclient got the right answers")


def ask(package: Any, address: str, **how: bool) -> None:
    """Ask for everything by one of NVIDIA's clients."""
    client = package.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net", "1")
    assert client.get_model_metadata("net")
    pixels = images(5)
    tensor = package.InferInput("pixels", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels, **how)
    names = ("logits", "probabilities", "labels")
    outputs = [package.InferRequestedOutput(name, **how) for name in names]
    result = client.infer("net", [tensor], outputs=outputs, request_id="7")
    truth = expected(pixels)
    np.testing.assert_allclose(result.as_numpy("logits"), truth, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(1), 1, rtol=1e-5)
    labels = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("labels")]
    assert labels == [LABELS[i] for i in truth.argmax(1)]
    file = io.BytesIO()
    square = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(square).save(file, "PNG")
    tensor = package.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([file.getvalue()], object))
    logits = client.infer("net", [tensor]).as_numpy("logits")
    pixels = square.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    truth = expected(pixels)
    np.testing.assert_allclose(logits, truth, rtol=1e-5, atol=1e-4)
    client.close()


def shows_the_page(server: Server) -> None:
    reply = httpx.get(server.rest, trust_env=False)
    assert reply.status_code == 200
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert "<script" in reply.text


def says_what_is_missing() -> None:
    """See that what needs torch says so, in one line."""
    for words in (["train"], ["models"], ["demo"]):
        ran = subprocess.run([sys.executable, "-m", "robust_export", *words], capture_output=True, text=True)
        assert ran.returncode == 1
        assert "pip install 'robust-export[train]'" in ran.stderr
        assert len(ran.stderr.splitlines()) == 1, ran.stderr


def assert_no_torch(server: Server) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()


if __name__ == "__main__":
    main()
