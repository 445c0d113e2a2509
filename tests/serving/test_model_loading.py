"""Choice of the served file and its runtime, and checks of bundles."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError, InvalidValue
from robust_export.runtimes.tensorrt import classifier as tensorrt
from robust_export.serving.model_loading import choose_file, load_models
from robust_export.serving.settings import Settings
from tests.serving.bundles import linear_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(linear_bundle(tmp_path / "net"))


def test_onnx_file_is_served_without_engine(bundle: Bundle) -> None:
    assert choose_file(bundle, "auto", "fp32") == ("model.onnx", "onnxruntime")
    assert choose_file(bundle, "reference", "fp32") == ("model.onnx", "reference")
    with pytest.raises(BundleError, match=r"no model\.int8\.onnx; make it with"):
        choose_file(bundle, "auto", "int8")
    with pytest.raises(BundleError, match="no TensorRT engine"):
        choose_file(bundle, "tensorrt", "fp32")


def test_engine_of_this_gpu_is_preferred(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"compute_capability": "8.9", "options": {"hardware_compatible": None}}
    bundle.write({"model.sm89.engine": b"engine"}, "engine", precision="fp32", **facts)
    capability: list[tuple[int, int] | None] = [(8, 9)]
    monkeypatch.setattr(tensorrt, "gpu_capability", lambda: capability[0])
    assert choose_file(bundle, "auto", "fp32") == ("model.sm89.engine", "tensorrt")
    assert choose_file(bundle, "onnxruntime", "fp32") == ("model.onnx", "onnxruntime")
    with pytest.raises(BundleError, match=r"model\.fp16\.onnx"):
        choose_file(bundle, "auto", "fp16")  # the engine is of another precision
    for other in ((9, 0), None):
        capability[0] = other
        assert choose_file(bundle, "auto", "fp32") == ("model.onnx", "onnxruntime")


def test_engine_is_ignored_without_cuda_bindings(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"compute_capability": "8.9", "options": {"hardware_compatible": None}}
    bundle.write({"model.sm89.engine": b"engine"}, "engine", precision="fp32", **facts)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)  # as if not installed
    assert choose_file(bundle, "auto", "fp32") == ("model.onnx", "onnxruntime")


def load(*paths: Path) -> None:
    load_models(Settings(models=tuple(map(str, paths))))


def test_name_that_no_url_can_hold_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="expected no spaces"):
        load(linear_bundle(tmp_path / "an odd name"))


def test_two_bundles_of_one_name_are_an_error(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="two bundles are named net"):
        load(bundle.path, linear_bundle(tmp_path / "other" / "net"))


def test_labels_must_match_the_classes(bundle: Bundle) -> None:
    manifest = bundle.path / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["sha256"]
    manifest.unlink()
    altered = Bundle.create(bundle.path, content | {"labels": ["one"]}, {"model.onnx": "onnx"})
    with pytest.raises(ArtifactError, match="5 classes, the manifest 1 labels"):
        load(altered.path)


def test_altered_or_missing_bundle_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        load(tmp_path / "none")
    content = bytearray((bundle.path / "model.onnx").read_bytes())
    content[-20] ^= 1
    (bundle.path / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        load(bundle.path)
