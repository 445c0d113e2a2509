"""Building, finding and refusing the compiled kernels."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner, Result

from robust_export import kernels
from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.errors import ArtifactError, BuildError, UnknownName
from robust_export.export.exporter import export_onnx
from robust_export.kernels.headers.onnxruntime import find_ort_headers
from robust_export.nn.load import load
from robust_export.nn.sparta import Sparta
from robust_export.recipe.schema import Verify
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.runtimes.registry import open_file
from robust_export.verification.verify import verify

FAST = Verify(attacks=("apgd-ce",), iterations=3, queries=10, ascent=3, samples=96, max_drop=0.1)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def script(path: Path, says: str) -> Path:
    """Write a program that complains and fails."""
    path.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it, and no library or headers given."""
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROBUST_EXPORT_ORT_LIBRARY")
    for name in ("ROBUST_EXPORT_TRT_LIBRARY", "ROBUST_EXPORT_CUDA_ARCHS", "TENSORRT_INCLUDE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def headers(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ONNX Runtime's headers where `built` found them, so that nothing is fetched; no nvcc, which is slow."""
    found = find_ort_headers(kernels.cache_folder() / "headers").path
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE_DIR", str(found))
    monkeypatch.setenv("CUDACXX", "no-nvcc-here")
    return found


@pytest.mark.usefixtures("quick_compiler")
def test_build_info_and_build_again(headers: Path, empty: Path) -> None:
    assert kernels.ort_library() is None
    assert "plugins build" in kernels.why_no_ort_library()
    result = run("plugins", "build", "--json")
    assert result.exit_code == 0, result.output
    entry = json.loads(result.stdout)["libraries"]["onnxruntime"]
    library = kernels.ort_library()
    assert library is not None
    assert entry.pop("instructions") in ("avx512", "avx2", "portable")
    assert entry.pop("cuda") is False
    assert entry == {"path": str(library), "loads": True, "why": None}
    made = library.stat().st_mtime_ns
    assert run("plugins", "build").exit_code == 0
    assert library.stat().st_mtime_ns == made
    assert run("plugins", "build", "--force").exit_code == 0
    assert library.stat().st_mtime_ns > made
    assert [p.name for p in library.parent.parent.iterdir()] == [library.parent.name]  # no leftovers
    info = json.loads(run("plugins", "info", "--json").stdout)
    assert info["libraries"]["onnxruntime"]["path"] == str(library)
    assert info["tools"]["compiler"]


def test_without_a_compiler(empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("plugins", "build")
    assert result.exit_code == 1
    assert "no C++ compiler" in result.stderr
    assert "apt-get install g++" in result.stderr
    assert "C++ compiler" in kernels.why_no_ort_library()
    assert len(kernels.why_no_ort_library().splitlines()) == 1
    monkeypatch.setenv("CXX", "g++-of-nobody")
    assert "'g++-of-nobody', which is no command" in run("plugins", "build").stderr


def test_without_cmake(empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "pip install cmake" in run("plugins", "build").stderr


def test_without_headers(empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE_DIR", str(tmp_path))
    result = run("plugins", "build")
    assert result.exit_code == 1
    assert f"ONNXRUNTIME_INCLUDE_DIR is {tmp_path}" in result.stderr
    monkeypatch.delenv("ONNXRUNTIME_INCLUDE_DIR")
    monkeypatch.setattr("robust_export.kernels.headers.onnxruntime.SYSTEM", ())
    monkeypatch.setattr("robust_export.kernels.headers.onnxruntime.KEYRING", str(tmp_path / "none.gpg"))
    monkeypatch.setattr(
        "robust_export.kernels.headers.onnxruntime.ARCHIVE", "file:///nowhere/{version}-{arch}.tgz"
    )
    result = run("plugins", "build")
    assert result.exit_code == 1
    for word in ("onnxruntime_cxx_api.h", "none.gpg", "release 1.21.0", "ONNXRUNTIME_INCLUDE_DIR"):
        assert word in result.stderr
    assert len(result.stderr.splitlines()) < 20


def test_headers_from_a_release_archive(
    headers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tarfile

    archive = tmp_path / "onnxruntime.tgz"
    with tarfile.open(archive, "w:gz") as file:
        for name in ("onnxruntime_c_api.h", "onnxruntime_cxx_api.h"):
            file.add(headers / name, f"onnxruntime-linux-x64-1.21.0/include/{name}")
    monkeypatch.delenv("ONNXRUNTIME_INCLUDE_DIR")
    monkeypatch.setattr("robust_export.kernels.headers.onnxruntime.SYSTEM", ())
    monkeypatch.setattr("robust_export.kernels.headers.onnxruntime.KEYRING", str(tmp_path / "none.gpg"))
    monkeypatch.setattr("robust_export.kernels.headers.onnxruntime.ARCHIVE", archive.as_uri())
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])  # a connection that broke off
    with pytest.raises(BuildError, match=r"release 1\.21\.0: "):
        find_ort_headers(tmp_path / "cache")
    archive.write_bytes(whole)
    found = find_ort_headers(tmp_path / "cache")
    assert (found.path / "onnxruntime_cxx_api.h").is_file()
    archive.unlink()
    assert find_ort_headers(tmp_path / "cache") == found  # kept


def test_headers_that_are_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime_cxx_api.h").touch()
    (tmp_path / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 17\n")
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(BuildError, match="18 or later"):
        find_ort_headers(tmp_path / "cache")


def test_a_compiler_that_fails(
    headers: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "c++", "sparta.cpp: error: this compiler is broken")))
    result = run("plugins", "build")
    assert result.exit_code == 1
    assert "this compiler is broken" in result.stderr
    assert len(result.stderr.splitlines()) < 20
    assert kernels.ort_library() is None
    assert list((empty / "plugins").iterdir()) == []


@pytest.mark.usefixtures("quick_compiler")
def test_an_nvcc_that_fails_costs_only_the_kernel_for_gpus(
    headers: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider, so nvcc is not asked")
    monkeypatch.setenv("CUDACXX", str(script(tmp_path / "nvcc", "this host compiler is too new")))
    result = run("plugins", "build")
    assert result.exit_code == 0, result.output
    assert "without the GPU kernel" in result.stderr
    first = kernels.ort_library()
    assert first is not None
    assert "not able to compile" in run("plugins", "build").stderr  # said again, not tried again
    monkeypatch.setenv("CUDACXX", "no-nvcc-here")
    assert "without the GPU kernel" not in run("plugins", "build").stderr
    assert kernels.ort_library() != first


@pytest.mark.usefixtures("quick_compiler")
def test_places_may_be_relative(
    headers: Path, built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", "cache")
    assert kernels.build().path.is_relative_to(tmp_path / "cache")
    shutil.copy(built, "own.so")
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", "own.so")
    assert kernels.describe()["libraries"]["onnxruntime"]["loads"] is True


def test_a_library_that_is_none(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(BuildError, match=r"none\.so"):
        OnnxRuntimeClassifier(trained / "model.onnx")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", str(broken))
    with pytest.raises(BuildError, match=r"(?s)broken\.so.*plugins build"):
        OnnxRuntimeClassifier(trained / "model.onnx")
    assert kernels.describe()["libraries"]["onnxruntime"]["loads"] is False


# --- what uses the kernel ---


def test_the_fused_classifier_agrees_and_says_so(library: Path, trained: Path) -> None:
    fused, stock = (OnnxRuntimeClassifier(trained / "model.onnx", kernel=kernel) for kernel in (True, False))
    assert (fused.fused_nodes(), stock.fused_nodes()) == (11, 0)
    pixels = np.random.default_rng(0).random((9, 3, 8, 8), dtype=np.float32)
    expected = PyTorchClassifier(load(trained).double())(pixels.astype(np.float64))
    np.testing.assert_allclose(fused(pixels), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stock(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [9, 11])
def test_a_gate_that_has_no_kernel_runs_on_its_function_body(
    library: Path, tmp_path: Path, kernel: int
) -> None:
    network = torch.nn.Sequential(Sparta(3, kernel_size=kernel), torch.nn.Flatten())
    classifier = OnnxRuntimeClassifier(export_onnx(network, tmp_path / "m.onnx", 12))
    assert classifier.fused_nodes() == 0
    assert f"[3, 1, {kernel}, {kernel}]" in classifier.why_not_fused()
    assert classifier(np.ones((1, 3, 12, 12), np.float32)).shape == (1, 432)


def test_instructions_that_there_are_not_are_not_asked_for(library: Path) -> None:
    def says(value: str) -> str:
        code = f"import ctypes; f = ctypes.CDLL({str(library)!r}).sparta_instructions"
        code += "; f.restype = ctypes.c_char_p; print(f().decode())"
        command = [sys.executable, "-c", code]
        env = {"SPARTA_ISA": value} if value else {}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()

    assert says("portable") == "portable"
    assert says("avx1024") == says("")


def test_export_says_how_many_nodes_run_fused(library: Path, bundle: Bundle) -> None:
    result = run("onnx", "--model", bundle.path, "--json")
    found = json.loads(result.stdout)
    assert (found["sparta_nodes"], found["fused_nodes"]) == (11, 11)
    assert "11 of 11 Sparta nodes run fused" in result.stderr


def test_export_without_a_kernel_says_why(bundle: Bundle) -> None:
    result = run("onnx", "--model", bundle.path, "--json")
    assert json.loads(result.stdout)["fused_nodes"] == 0
    assert "no fused kernel" in result.stderr


def test_a_file_is_judged_as_stock_runtimes_run_it_and_fused(library: Path, bundle: Bundle) -> None:
    report = verify(bundle, settings=FAST, device="cpu")
    assert [item.fused_nodes for item in report.artifacts] == [0, 11]
    assert report.verdict == "pass"


def test_a_wrong_function_body_fails_though_the_kernel_is_right(library: Path, bundle: Bundle) -> None:
    path = bundle.path / "model.onnx"
    model = onnx.load(path)
    constant = next(n for n in model.functions[0].node if n.op_type == "Constant")
    constant.attribute[0].f = 1.5  # the factor 2
    onnx.save(model, path.with_name("other.onnx"))
    report = verify(bundle, ["other.onnx"], settings=FAST, device="cpu", write=False)
    assert [item.verdict for item in report.artifacts] == ["fail", "pass"]
    assert report.verdict == "fail"


# --- OpenVINO ---


def test_openvino_is_a_runtime_too(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    pixels = np.random.default_rng(0).random((9, 3, 8, 8), dtype=np.float32)
    expected = PyTorchClassifier(load(bundle).double())(pixels.astype(np.float64))
    found = open_file(bundle.path / "model.onnx", "openvino", batch_size=4, threads=1)
    np.testing.assert_allclose(found(pixels), expected, rtol=1e-4, atol=1e-5)
    assert found.labels == bundle.labels
    report = verify(bundle, runtime="openvino", settings=FAST, device="cpu", write=False)
    assert [(item.runtime, item.verdict) for item in report.artifacts] == [("openvino", "pass")]


def test_openvino_that_is_not_installed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ArtifactError, match=r"robust-export\[openvino\]"):
        open_file(trained / "model.onnx", "openvino")


def test_a_runtime_that_nobody_knows(trained: Path) -> None:
    with pytest.raises(UnknownName, match="openvino"):
        open_file(trained / "model.onnx", "openvin")
