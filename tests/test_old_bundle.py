"""A bundle written by version 0.1.0, before its code was reorganised, still loads, verifies and serves.

tests/fixtures/bundle-0.1.0 was made with the recipe of tests/conftest.py (TINY) and verified by
`robust-export verify --model tiny --device cpu`. Its checkpoints were left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

import robust_export
from robust_export.bundle import Bundle
from robust_export.verification.verify import verify
from tests.serving.servers import App

STORED = Path(__file__).parent / "fixtures" / "bundle-0.1.0"
ONE_IMAGE = 1 / 360

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def pixels() -> Array:
    return np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def logits(pixels: Array) -> Array:
    """Return what stock ONNX Runtime computes with the stored file, without this project's code."""
    session = onnxruntime.InferenceSession(STORED / "model.onnx", providers=["CPUExecutionProvider"])
    result: Array = session.run(["logits"], {"pixels": pixels})[0]
    return result


@pytest.fixture
def old_bundle(tmp_path: Path) -> Bundle:
    """Return a copy of the stored bundle under the name it was made with."""
    return Bundle.open(copytree(STORED, tmp_path / "tiny"))


def keys(value: Any, prefix: str = "") -> set[str]:
    """Return the keys of a JSON value at every depth, as paths; the elements of a list share one path."""
    if isinstance(value, dict):
        paths = {f"{prefix}/{key}": entry for key, entry in value.items()}
        return set(paths).union(*(keys(entry, path) for path, entry in paths.items()))
    if isinstance(value, list):
        return set().union(*(keys(entry, f"{prefix}/*") for entry in value))
    return set()


def test_every_file_is_listed(old_bundle: Bundle) -> None:
    listed = set(old_bundle.manifest["files"])
    assert listed == {path.name for path in STORED.iterdir()} - {"manifest.json"}


def test_load_gives_logits_of_onnx_file(pixels: Array, logits: Array) -> None:
    model = robust_export.load(STORED)
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.from_numpy(pixels)).numpy(), logits, rtol=1e-4, atol=1e-5)


def test_served_logits(old_bundle: Bundle, pixels: Array, logits: Array) -> None:
    tensor = {"name": "pixels", "datatype": "FP32", "shape": pixels.shape, "data": pixels.ravel().tolist()}
    app = App(old_bundle.path)
    try:
        reply = app.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}).encode())
    finally:
        app.close()
    assert reply.status == 200, reply.content
    output = next(entry for entry in reply.json()["outputs"] if entry["name"] == "logits")
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), logits, rtol=1e-5, atol=1e-6)


def test_verify_again(old_bundle: Bundle) -> None:
    """Verdict, JSON keys and settings are the same; accuracies may differ by one image on another CPU."""
    stored = json.loads((STORED / "verify.json").read_text())
    assert verify(old_bundle, device="cpu").verdict == stored["verdict"] == "pass"
    again = json.loads((old_bundle.path / "verify.json").read_text())
    assert keys(again) == keys(stored)
    for key in ("schema", "model", "threat", "samples", "gates"):
        assert again[key] == stored[key]
    assert again["source"]["budgets"] == stored["source"]["budgets"]
    for name in ("clean_accuracy", "robust_accuracy"):
        assert again["source"][name] == pytest.approx(stored["source"][name], abs=ONE_IMAGE)
        (new,), (old,) = again["artifacts"], stored["artifacts"]
        assert new[name] == pytest.approx(old[name], abs=ONE_IMAGE)
    assert Bundle.open(old_bundle.path).files("report") == ["verify.json", "report.html"]
