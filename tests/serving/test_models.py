"""Which file of a bundle is served, and by what."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError, InvalidValue
from robust_export.serving import models
from robust_export.serving.models import choose, load_models
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
    bundle.write({"model.sm89.engine": b"engine"}, "engine", precision="fp32")
    monkeypatch.setattr(models, "_compute_capability", lambda: "89")
    monkeypatch.setattr(models, "RUNTIMES", ("onnxruntime",))
    assert choose(bundle, "auto", "fp32") == ("model.onnx", "onnxruntime")
    monkeypatch.setattr(models, "RUNTIMES", ("onnxruntime", "tensorrt"))
    assert choose(bundle, "auto", "fp32") == ("model.sm89.engine", "tensorrt")
    assert choose(bundle, "onnxruntime", "fp32") == ("model.onnx", "onnxruntime")
    for capability in ("90", ""):
        monkeypatch.setattr(models, "_compute_capability", lambda found=capability: found)
        assert choose(bundle, "auto", "fp32") == ("model.onnx", "onnxruntime")


def test_the_gpu_is_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "8.9"\necho "9.0"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert models._compute_capability() == "89"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert models._compute_capability() == ""
    tool.unlink()
    assert models._compute_capability() == ""


def test_names_and_labels_must_fit(bundle: Bundle, tmp_path: Path) -> None:
    odd = linear_bundle(tmp_path / "an odd name")
    with pytest.raises(InvalidValue, match="no address can hold"):
        load_models(Settings(models=(str(odd),)))
    bundle.manifest["labels"] = ["one"]
    bundle._write()
    with pytest.raises(ArtifactError, match="5 classes, the manifest 1 labels"):
        load_models(Settings(models=(str(bundle.path),)))
