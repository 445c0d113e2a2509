"""The OpenVINO classifier, and the choice of a runtime by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, UnknownName
from robust_export.nn.load import load
from robust_export.recipe.schema import Verify
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.runtimes.registry import open_file
from robust_export.verification.verify import verify

QUICK = Verify(attacks=("apgd-ce",), iterations=3, queries=10, ascent=3, samples=96, max_drop=0.1)


def test_agrees_with_pytorch_and_verifies(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    pixels = np.random.default_rng(0).random((9, 3, 8, 8), dtype=np.float32)
    expected = PyTorchClassifier(load(bundle).double())(pixels.astype(np.float64))
    classifier = open_file(bundle.path / "model.onnx", "openvino", batch_size=4, threads=1)
    np.testing.assert_allclose(classifier(pixels), expected, rtol=1e-4, atol=1e-5)
    assert classifier.labels == bundle.labels
    report = verify(bundle, runtime="openvino", settings=QUICK, device="cpu", write=False)
    assert [(item.runtime, item.verdict) for item in report.artifacts] == [("openvino", "pass")]


def test_missing_package_names_the_extra(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ArtifactError, match=r"robust-export\[openvino\]"):
        open_file(trained / "model.onnx", "openvino")


def test_unknown_runtime_lists_the_known(trained: Path) -> None:
    with pytest.raises(UnknownName, match="openvino"):
        open_file(trained / "model.onnx", "openvin")
