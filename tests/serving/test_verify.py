"""`verify` on a served model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from robust_export.bundle import Bundle
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.remote import RemoteClassifier
from robust_export.verification.verify import verify
from tests.serving.servers import start


def test_served_bundle_passes(trained: Path) -> None:
    bundle = Bundle.open(trained)
    settings = replace(bundle.recipe().verify, samples=230, iterations=3, queries=10, ascent=2)
    with start("--model", bundle.path, "--no-grpc", "--log-level", "warning") as server:
        url = f"{server.rest}/v2/models/{bundle.name}"
        pixels = np.random.default_rng(0).random((32, 3, 8, 8), dtype=np.float32)
        classifier = OnnxRuntimeClassifier(bundle.file("model.onnx"))
        np.testing.assert_array_equal(RemoteClassifier(url)(pixels), classifier(pixels))
        report = verify(bundle, [url], settings=settings, device="cpu", write=False)
    (result,) = report.artifacts
    assert (result.file, result.runtime) == (url, "remote")
    assert result.verdict == "pass", result.reasons
    assert {check.outcome for check in result.checks} == {"ok"}
