"""`verify` judges what the server serves as it judges the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robust_export.bundle import Bundle
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.remote import RemoteClassifier
from robust_export.verification import verify
from tests.serving.servers import start


def test_a_served_bundle_passes(bundle: Bundle, tmp_path: Path) -> None:
    with start(tmp_path, "--model", bundle.path, "--no-grpc", "--log-level", "warning") as server:
        url = f"{server.rest}/v2/models/{bundle.name}"
        pixels = np.random.default_rng(0).random((32, 3, 8, 8), dtype=np.float32)
        file = OnnxRuntimeClassifier(bundle.file("model.onnx"))
        np.testing.assert_array_equal(RemoteClassifier(url)(pixels), file(pixels))
        report = verify(bundle, [url, "model.onnx"], device="cpu", write=False)
    served, local = report.artifacts
    assert (served.runtime, served.verdict, local.verdict) == ("remote", "pass", "pass")
    assert served.robust_accuracy == local.robust_accuracy
    assert served.clean_accuracy == local.clean_accuracy
