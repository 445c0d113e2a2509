"""Finding TensorRT's headers, and the GPU architectures to compile for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robust_export.errors import BuildError, InvalidValue
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from robust_export.kernels.toolchain import architectures
from tests.kernels.stand_ins import run, write_program, write_trt_headers

pytestmark = pytest.mark.usefixtures("bare_machine")


@pytest.mark.parametrize("version", ["10.0", "11.1"])
def test_version_is_read_from_the_headers(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    folder = write_trt_headers(bare_machine / "given/include", version)
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(folder.parent))
    headers = find_tensorrt_headers()
    assert headers.path == folder
    assert headers.origin.startswith(f"TensorRT {version} in TENSORRT_INCLUDE_DIR")
    before = headers.digest
    (headers.path / "NvInferRuntime.h").write_text("// another")
    assert find_tensorrt_headers().digest != before


def test_system_headers_precede_the_wheel(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_trt_headers(bare_machine / "site/a_wheel/include/tensorrt", "10.0")
    (bare_machine / "site/a_wheel/__init__.py").write_text("raise RuntimeError('this was imported')")
    monkeypatch.syspath_prepend(bare_machine / "site")
    monkeypatch.setattr("robust_export.kernels.headers.tensorrt.WHEEL", "a_wheel")
    assert find_tensorrt_headers().path == wheel
    old, new = write_trt_headers(bare_machine / "old", "8.6"), write_trt_headers(bare_machine / "new", "11.1")
    monkeypatch.setattr("robust_export.kernels.headers.tensorrt.SYSTEM", (str(old), str(new)))
    assert find_tensorrt_headers().path == new
    assert "a_wheel" not in sys.modules


def test_missing_or_old_headers_raise(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match=r"pip install --no-deps kernel-lens==2\.0\.1"):
        find_tensorrt_headers()
    old = write_trt_headers(bare_machine / "old", "8.6")
    monkeypatch.setattr("robust_export.kernels.headers.tensorrt.SYSTEM", (str(old),))
    with pytest.raises(BuildError, match=r"old has headers of TensorRT 8\.6"):
        find_tensorrt_headers()
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(old))
    with pytest.raises(
        BuildError, match=r"TENSORRT_INCLUDE_DIR is .*old, which has headers of TensorRT 8\.6"
    ):
        find_tensorrt_headers()
    (old / "NvInferRuntime.h").unlink()
    with pytest.raises(BuildError, match=r"has no NvInfer\.h"):
        find_tensorrt_headers()


def test_architectures_are_those_nvcc_supports(bare_machine: Path) -> None:
    listed = [f"compute_{number}" for number in (75, 80, 86, 87, 89, 90, 100, 103, 120, 121)]
    newer = write_program(bare_machine / "bin/newer", *listed)
    assert architectures(str(newer)) == "75-real;80-real;86-real;89-real;90-real;100-real;120"
    older = write_program(bare_machine / "bin/older", "compute_70", "compute_75", "compute_80", "compute_90a")
    assert architectures(str(older)) == "75-real;80"
    silent = write_program(bare_machine / "bin/silent", "unknown option")
    assert architectures(str(silent)) == "75-real;80-real;86-real;89-real;90-real;100-real;120"


def test_architectures_of_local_gpus(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # make GPUs visible again
    monkeypatch.setenv("PATH", str(bare_machine / "bin"))
    nvcc = write_program(bare_machine / "bin/nvcc", "compute_80", "compute_86", "compute_90", "compute_120")
    write_program(bare_machine / "bin/nvidia-smi", "9.0", "8.6", "9.0")
    assert architectures(str(nvcc)) == "86-real;90"
    write_program(
        bare_machine / "bin/nvidia-smi", "12.9"
    )  # newer than nvcc supports: it compiles the newest PTX
    assert architectures(str(nvcc)) == "80-real;86-real;90-real;120"
    write_program(bare_machine / "bin/nvidia-smi", "NVIDIA-SMI has failed")
    assert architectures(str(nvcc)) == "80-real;86-real;90-real;120"


@pytest.mark.parametrize(
    ("given", "expected"), [("80", "80"), ("80, 90a-real", "80;90a-real"), ("all-major", "all-major")]
)
def test_requested_architectures(monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", given)
    assert architectures("no-nvcc") == expected


@pytest.mark.parametrize("given", ["sm_80", "8.0", "80;;90", "newest"])
def test_invalid_architectures(stand_in_sources: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", given)
    with pytest.raises(InvalidValue, match="such as 80;90"):
        architectures("no-nvcc")
    assert run("plugins", "build").exit_code == 2
