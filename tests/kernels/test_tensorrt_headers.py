"""What the library for TensorRT is built with and for: the headers and the GPUs that are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robust_export.errors import BuildError, InvalidValue
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from robust_export.kernels.toolchain import architectures
from tests.kernels.stand_ins import headers, program, run

pytestmark = pytest.mark.usefixtures("bare")

# --- headers ---


@pytest.mark.parametrize("version", ["10.0", "11.1"])
def test_headers_of_every_spelling_of_a_version(
    bare: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(headers(bare / "given/include", version).parent))
    found = find_tensorrt_headers()
    assert found.path == bare / "given/include"
    assert found.origin.startswith(f"TensorRT {version} in TENSORRT_INCLUDE_DIR")
    before = found.digest
    (found.path / "NvInferRuntime.h").write_text("// another")
    assert find_tensorrt_headers().digest != before


def test_headers_of_the_system_come_before_the_wheel(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = headers(bare / "site/a_wheel/include/tensorrt", "10.0")
    (bare / "site/a_wheel/__init__.py").write_text("raise RuntimeError('this was imported')")
    monkeypatch.syspath_prepend(bare / "site")
    monkeypatch.setattr("robust_export.kernels.headers.tensorrt.WHEEL", "a_wheel")
    assert find_tensorrt_headers().path == wheel
    old, new = headers(bare / "old", "8.6"), headers(bare / "new", "11.1")
    monkeypatch.setattr("robust_export.kernels.headers.tensorrt.SYSTEM", (str(old), str(new)))
    assert find_tensorrt_headers().path == new
    assert "a_wheel" not in sys.modules


def test_headers_that_are_not_there_or_too_old(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match=r"pip install --no-deps kernel-lens==2\.0\.1"):
        find_tensorrt_headers()
    old = headers(bare / "old", "8.6")
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


# --- GPUs ---


def test_gpus_are_those_that_nvcc_knows(bare: Path) -> None:
    listed = [f"compute_{number}" for number in (75, 80, 86, 87, 89, 90, 100, 103, 120, 121)]
    newer = program(bare / "bin/newer", *listed)
    assert architectures(str(newer)) == "75-real;80-real;86-real;89-real;90-real;100-real;120"
    older = program(bare / "bin/older", "compute_70", "compute_75", "compute_80", "compute_90a")
    assert architectures(str(older)) == "75-real;80"
    mute = program(bare / "bin/mute", "unknown option")
    assert architectures(str(mute)) == "75-real;80-real;86-real;89-real;90-real;100-real;120"


def test_gpus_are_this_machines_where_it_has_some(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of `bare`, which hides them
    monkeypatch.setenv("PATH", str(bare / "bin"))
    nvcc = program(bare / "bin/nvcc", "compute_80", "compute_86", "compute_90", "compute_120")
    program(bare / "bin/nvidia-smi", "9.0", "8.6", "9.0")
    assert architectures(str(nvcc)) == "86-real;90"
    program(bare / "bin/nvidia-smi", "12.9")  # newer than nvcc: PTX of the newest serves it
    assert architectures(str(nvcc)) == "80-real;86-real;90-real;120"
    program(bare / "bin/nvidia-smi", "NVIDIA-SMI has failed")
    assert architectures(str(nvcc)) == "80-real;86-real;90-real;120"


@pytest.mark.parametrize(
    ("given", "expected"), [("80", "80"), ("80, 90a-real", "80;90a-real"), ("all-major", "all-major")]
)
def test_gpus_that_are_asked_for(monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", given)
    assert architectures("no-nvcc") == expected


@pytest.mark.parametrize("given", ["sm_80", "8.0", "80;;90", "newest"])
def test_gpus_that_are_none(source: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_CUDA_ARCHS", given)
    with pytest.raises(InvalidValue, match="such as 80;90"):
        architectures("no-nvcc")
    assert run("plugins", "build").exit_code == 2
