"""TensorRT variants: import, the RTX wheel's packaging fault, logging, plugins, GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robust_export import kernels
from robust_export.errors import ArtifactError, UnknownName
from robust_export.runtimes.tensorrt import rtx_wheel, variants
from robust_export.runtimes.tensorrt.gpu_info import gpu_capability
from robust_export.runtimes.tensorrt.logger import summary
from robust_export.runtimes.tensorrt.variants import load_variant

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)

PARSE = """
import sys
from pathlib import Path
from robust_export.errors import RobustExportError
from robust_export.export.tensorrt.engines import parse_network
from robust_export.export.tensorrt.graph import read_graph
from robust_export.runtimes.tensorrt.variants import load_variant
if "early" in sys.argv:
    import tensorrt_rtx
try:
    print(parse_network(read_graph(Path(sys.argv[1])), "fp32", load_variant("rtx")).plugin_layers)
except RobustExportError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def library() -> Path:
    path = kernels.trt_library()
    if path is None:
        pytest.skip(kernels.why_no_trt_library())
    return path


def run(code: str, *args: str | Path, **environment: str) -> str:
    """Return the output of code run in a subprocess, which must exit with 0."""
    command = [sys.executable, "-c", code, *map(str, args)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-2000:])
    return ran.stdout


# --- the wheel of TensorRT for RTX ---


@needs_rtx
def test_wheel_fault_is_worked_around(trained: Path, library: Path, tmp_path: Path) -> None:
    environment = {"ROBUST_EXPORT_CACHE": str(tmp_path / "cache"), "ROBUST_EXPORT_TRT_LIBRARY": str(library)}
    for _ in range(2):  # the second time the links exist
        assert int(run(PARSE, trained / "model.onnx", **environment)) > 0
    [folder] = (tmp_path / "cache").iterdir()
    assert {p.name for p in folder.iterdir()} == {rtx_wheel.RTX_LIBRARY, rtx_wheel.RTX_PARSER}
    (folder / rtx_wheel.RTX_LIBRARY).unlink()
    (folder / rtx_wheel.RTX_LIBRARY).symlink_to("a-removed-wheel")
    assert int(run(PARSE, trained / "model.onnx", **environment)) > 0
    wheel = importlib.util.find_spec("tensorrt_rtx_libs")
    assert wheel is not None
    assert wheel.origin is not None
    assert not (Path(wheel.origin).parent / rtx_wheel.RTX_LIBRARY).exists()  # the wheel is unchanged


@needs_rtx
@pytest.mark.parametrize("how", ["early", "no cache"])
def test_wheel_fault_raises_if_unavoidable(trained: Path, library: Path, tmp_path: Path, how: str) -> None:
    cache = tmp_path / "cache"
    if how == "no cache":
        cache.write_text("a file instead of a folder")
    environment = {"ROBUST_EXPORT_CACHE": str(cache), "ROBUST_EXPORT_TRT_LIBRARY": str(library)}
    output = run(PARSE, trained / "model.onnx", how, **environment)
    assert output.startswith("ArtifactError TensorRT for RTX's ONNX parser looks for libtensorrt_rtx.so")
    assert "ln -s libtensorrt_rtx.so.1 " in output


@needs_rtx
def test_link_on_library_path_is_enough(trained: Path, library: Path, tmp_path: Path) -> None:
    wheel = importlib.util.find_spec("tensorrt_rtx_libs")
    assert wheel is not None
    assert wheel.origin is not None
    target = Path(wheel.origin).parent / f"{rtx_wheel.RTX_LIBRARY}.1"
    (tmp_path / rtx_wheel.RTX_LIBRARY).symlink_to(target)
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "ROBUST_EXPORT_TRT_LIBRARY": str(library)}
    assert int(run(PARSE, trained / "model.onnx", "early", **environment)) > 0


# --- import ---


def test_missing_variant_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="did you mean 'rtx'"):
        load_variant("rtxx")
    monkeypatch.setattr(rtx_wheel, "find_spec", lambda module: None)
    with pytest.raises(ArtifactError, match=r"pip install 'robust-export\[tensorrt\]' or .*\[rtx\]"):
        load_variant()
    with pytest.raises(ArtifactError, match=r"\(tensorrt_rtx cannot be imported\): .*\[rtx\]"):
        load_variant("rtx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("__version__ = '8.6.1'", r"tensorrt has version 8\.6\.1; expected 10 or later"),
        ("raise FileNotFoundError('libnvinfer.so.10')", "cannot be imported: libnvinfer.so.10. Install"),
    ],
)
def test_unusable_tensorrt_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    variants._import.cache_clear()
    try:
        with pytest.raises(ArtifactError, match=message):
            load_variant("auto")  # prefers tensorrt to rtx
    finally:
        sys.modules.pop("tensorrt", None)
        variants._import.cache_clear()


@needs_rtx
def test_rtx_variant() -> None:
    variant = load_variant("rtx")
    assert variant is load_variant("rtx")
    assert variant.title.startswith("TensorRT for RTX 1.")
    assert {(7, 5), (8, 9), (12, 0)} <= set(variant.capabilities)
    assert variant.capabilities[12, 0] == variant.trt.ComputeCapability.SM120
    assert variant.flag("BuilderFlag", "TF32") == variant.trt.BuilderFlag.TF32
    assert variant.flag("BuilderFlag", "NO_SUCH_FLAG") is None
    assert variant.flag("NoSuchFlags", "TF32") is None


# --- logger ---


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([], ""),
        (["first", "last (Of it. In catch at /_src/a/b.cpp:250)"], "last (Of it.)"),
        (["what matters", "Cuda Runtime (cudaError 35: driver)"], "what matters"),
        (["Cuda Runtime (cudaError 35: driver)"], "Cuda Runtime (cudaError 35: driver)"),
        (["Sparta's plugin: bias is [6]", "Plugin node x"], "Sparta's plugin: bias is [6]; Plugin node x"),
        (["the cause", "ModelImporter.cpp:140: While\nparsing"], "the cause"),
    ],
)
def test_summary_of_errors(errors: list[str], expected: str) -> None:
    assert summary(errors) == expected


@needs_rtx
def test_logger_keeps_errors() -> None:
    variant = load_variant("rtx")
    severity = variant.trt.ILogger.Severity
    variant.logger.take()
    variant.logger.log(severity.WARNING, "a warning")
    assert variant.logged_errors() == "it gave no reason"
    variant.logger.log(severity.ERROR, "an error")
    assert variant.logged_errors() == "an error"
    assert variant.logged_errors() == "it gave no reason"


# --- plugins ---

LOAD = """
import sys
from pathlib import Path
from robust_export.errors import ArtifactError
from robust_export.runtimes.tensorrt.plugins import load_plugins
from robust_export.runtimes.tensorrt.variants import load_variant
for path in sys.argv[1:]:
    try:
        load_plugins(load_variant("rtx"), Path(path))
        print("loaded")
    except ArtifactError as error:
        print(error)
"""


@needs_rtx
def test_library_is_loaded_once(library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    shutil.copy(library, other)
    link = tmp_path / "link.so"
    link.symlink_to(library)
    first, again, through_link, second = run(LOAD, library, library, link, other).splitlines()
    assert (first, again, through_link) == ("loaded",) * 3
    assert f"{other} cannot be registered: this process has the plugins of {library}" in second


@needs_rtx
def test_invalid_library_raises(library: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.so"
    garbage.write_bytes(b"no library")
    plain = Path(next(p for p in kernels.cache_folder().rglob("libsparta_ort.so")))
    output = run(LOAD, garbage, tmp_path / "missing.so", plain, library).splitlines()
    assert "garbage.so is not a usable plugin library" in output[0]
    assert "missing.so is not a usable plugin library" in output[1]
    assert "does not take the plugins of" in output[2]
    assert "robust-export plugins build" in output[2]
    assert output[3] == "loaded"


# --- the GPU ---


class Runtime:
    """Replaces cuda.bindings.runtime."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815
    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
    )

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cudaGetDevice(self) -> tuple[int, Any]:  # noqa: N802
        if self.status == -1:
            raise RuntimeError("Failed to dlopen libcuda.so.1")
        return self.status, 0

    def cudaDeviceGetAttribute(self, name: str, device: int) -> tuple[int, int]:  # noqa: N802
        return 0, {"major": 8, "minor": 9}[name]


@pytest.mark.parametrize(("status", "expected"), [(0, (8, 9)), (35, None), (-1, None)])
def test_gpu_capability(
    monkeypatch: pytest.MonkeyPatch, status: int, expected: tuple[int, int] | None
) -> None:
    bindings = SimpleNamespace(runtime=Runtime(status))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=bindings))
    assert gpu_capability() == expected


def test_missing_cuda_bindings_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ArtifactError, match="pip install cuda-bindings"):
        gpu_capability()
