"""Export, verification and the ONNX Runtime classifier with the fused kernel and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from robust_export import kernels
from robust_export.bundle import Bundle
from robust_export.errors import BuildError
from robust_export.export.exporter import export_onnx
from robust_export.nn.load import load
from robust_export.nn.sparta import Sparta
from robust_export.recipe.schema import Verify
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.verification.verify import verify
from tests.kernels.stand_ins import run

QUICK = Verify(attacks=("apgd-ce",), iterations=3, queries=10, ascent=3, samples=96, max_drop=0.1)


def test_fused_and_stock_agree_with_pytorch(library: Path, trained: Path) -> None:
    fused, stock = (OnnxRuntimeClassifier(trained / "model.onnx", kernel=kernel) for kernel in (True, False))
    assert (fused.fused_nodes(), stock.fused_nodes()) == (11, 0)
    pixels = np.random.default_rng(0).random((9, 3, 8, 8), dtype=np.float32)
    expected = PyTorchClassifier(load(trained).double())(pixels.astype(np.float64))
    np.testing.assert_allclose(fused(pixels), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stock(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [9, 11])
def test_unsupported_kernel_size_runs_the_function_body(
    library: Path, tmp_path: Path, kernel_size: int
) -> None:
    network = torch.nn.Sequential(Sparta(3, kernel_size=kernel_size), torch.nn.Flatten())
    classifier = OnnxRuntimeClassifier(export_onnx(network, tmp_path / "m.onnx", 12))
    assert classifier.fused_nodes() == 0
    assert f"[3, 1, {kernel_size}, {kernel_size}]" in classifier.why_not_fused()
    assert classifier(np.ones((1, 3, 12, 12), np.float32)).shape == (1, 432)


def test_sparta_isa_selects_available_instructions(library: Path) -> None:
    def instructions(requested: str) -> str:
        code = f"import ctypes; f = ctypes.CDLL({str(library)!r}).sparta_instructions"
        code += "; f.restype = ctypes.c_char_p; print(f().decode())"
        environment = {"SPARTA_ISA": requested} if requested else {}
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    assert instructions("portable") == "portable"
    assert instructions("avx1024") == instructions("")  # the best available


def test_invalid_library_raises(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(BuildError, match=r"none\.so"):
        OnnxRuntimeClassifier(trained / "model.onnx")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", str(broken))
    with pytest.raises(BuildError, match=r"(?s)broken\.so.*plugins build"):
        OnnxRuntimeClassifier(trained / "model.onnx")
    assert kernels.describe()["libraries"]["onnxruntime"]["loads"] is False


def test_export_reports_fused_nodes(library: Path, bundle: Bundle) -> None:
    result = run("onnx", "--model", str(bundle.path), "--json")
    output = json.loads(result.stdout)
    assert (output["sparta_nodes"], output["fused_nodes"]) == (11, 11)
    assert "11 of 11 Sparta nodes run fused" in result.stderr


def test_export_reports_missing_kernel(bundle: Bundle) -> None:
    result = run("onnx", "--model", str(bundle.path), "--json")
    assert json.loads(result.stdout)["fused_nodes"] == 0
    assert "no fused kernel" in result.stderr


def test_verify_judges_stock_and_fused(library: Path, bundle: Bundle) -> None:
    report = verify(bundle, settings=QUICK, device="cpu")
    assert [item.fused_nodes for item in report.artifacts] == [0, 11]
    assert report.verdict == "pass"


def test_verify_detects_wrong_function_body(library: Path, bundle: Bundle) -> None:
    path = bundle.path / "model.onnx"
    model = onnx.load(path)
    constant = next(n for n in model.functions[0].node if n.op_type == "Constant")
    constant.attribute[0].f = 1.5  # the factor 2 of the gate
    onnx.save(model, path.with_name("other.onnx"))
    report = verify(bundle, ["other.onnx"], settings=QUICK, device="cpu", write=False)
    assert [item.verdict for item in report.artifacts] == ["fail", "pass"]
    assert report.verdict == "fail"
