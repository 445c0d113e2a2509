"""Fixtures that hide parts of the machine from the build of the kernels, or replace them by stand-ins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.compiling import tools_or_skip
from tests.kernels.stand_ins import CMAKE, ORT, TRT, set_providers, write_program, write_trt_headers


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache folder, and remove the variables that name libraries, headers and GPUs."""
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", str(tmp_path / "cache"))
    for name in ("ORT_LIBRARY", "TRT_LIBRARY", "CUDA_ARCHS"):
        monkeypatch.delenv(f"ROBUST_EXPORT_{name}", raising=False)
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def bare_machine(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide TensorRT's headers and the GPUs, and set CUDACXX to an nvcc that compiles nothing."""
    monkeypatch.setattr("robust_export.kernels.headers.tensorrt.SYSTEM", ())
    monkeypatch.setattr("robust_export.kernels.headers.tensorrt.WHEEL", "no_such_wheel")
    monkeypatch.setattr("robust_export.kernels.toolchain._local_architectures", set)
    monkeypatch.setenv("CUDACXX", str(write_program(tmp_path / "bin/nvcc", "compute_75", "compute_90")))
    return tmp_path


@pytest.fixture
def stand_in_sources(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the kernels' sources by stand-ins that compile at once; both runtimes' headers are found."""
    tools_or_skip()
    folder = bare_machine / "plugins"
    folder.mkdir()
    for name, text in {"CMakeLists.txt": CMAKE, "ort.cpp": ORT, "trt.cpp": TRT}.items():
        (folder / name).write_text(text)
    monkeypatch.setattr("robust_export.kernels.building.source_folder", lambda: folder)
    monkeypatch.setattr("robust_export.kernels.paths.source_digest", lambda: "standin")
    api = bare_machine / "onnxruntime"
    api.mkdir()
    (api / "onnxruntime_cxx_api.h").touch()
    (api / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 18\n")
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE_DIR", str(api))
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(write_trt_headers(bare_machine / "tensorrt", "10.0")))
    set_providers(monkeypatch, cuda=True)
    return folder
