"""Which file of a bundle is served, and by what."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError, InvalidValue
from robust_export.runtimes.tensorrt import classifier as tensorrt
from robust_export.serving.model_loading import choose, load_models
from robust_export.serving.settings import Settings
from tests.serving.bundles import linear_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(linear_bundle(tmp_path / "net"))


def test_the_onnx_file_without_an_engine(bundle: Bundle) -> None:
    assert choose(bundle, "auto", "fp32") == ("model.onnx", "onnxruntime")
    assert choose(bundle, "reference", "fp32") == ("model.onnx", "reference")
    with pytest.raises(BundleError, match=r"no model\.int8\.onnx; make it with"):
        choose(bundle, "auto", "int8")
    with pytest.raises(BundleError, match="no TensorRT engine"):
        choose(bundle, "tensorrt", "fp32")


def test_the_engine_of_this_gpu_goes_first(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"compute_capability": "8.9", "options": {"hardware_compatible": None}}
    bundle.write({"model.sm89.engine": b"engine"}, "engine", precision="fp32", **facts)
    here: list[tuple[int, int] | None] = [(8, 9)]
    monkeypatch.setattr(tensorrt, "gpu", lambda: here[0])
    assert choose(bundle, "auto", "fp32") == ("model.sm89.engine", "tensorrt")
    assert choose(bundle, "onnxruntime", "fp32") == ("model.onnx", "onnxruntime")
    with pytest.raises(BundleError, match=r"model\.fp16\.onnx"):
        choose(bundle, "auto", "fp16")  # the engine is of another precision
    for other in ((9, 0), None):
        here[0] = other
        assert choose(bundle, "auto", "fp32") == ("model.onnx", "onnxruntime")


def test_an_engine_where_nobody_can_tell_of_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"compute_capability": "8.9", "options": {"hardware_compatible": None}}
    bundle.write({"model.sm89.engine": b"engine"}, "engine", precision="fp32", **facts)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)  # which is not installed
    assert choose(bundle, "auto", "fp32") == ("model.onnx", "onnxruntime")


def test_names_and_labels_must_fit(bundle: Bundle, tmp_path: Path) -> None:
    odd = linear_bundle(tmp_path / "an odd name")
    with pytest.raises(InvalidValue, match="no address can hold"):
        load_models(Settings(models=(str(odd),)))
    bundle.manifest["labels"] = ["one"]
    bundle._write()
    with pytest.raises(ArtifactError, match="5 classes, the manifest 1 labels"):
        load_models(Settings(models=(str(bundle.path),)))
