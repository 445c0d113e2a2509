"""Which TensorRT there is; the fault of RTX's wheel never ends a process."""

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
from robust_export.runtimes.tensorrt.gpu_info import gpu
from robust_export.runtimes.tensorrt.logger import summary
from robust_export.runtimes.tensorrt.variants import find

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)

PARSE = """
import sys
from pathlib import Path
from robust_export.errors import RobustExportError
from robust_export.export.tensorrt.engines import parse
from robust_export.export.tensorrt.graph import read
from robust_export.runtimes.tensorrt import find
if "early" in sys.argv:
    import tensorrt_rtx
try:
    print(parse(read(Path(sys.argv[1])), "fp32", find("rtx")).plugin_layers)
except RobustExportError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def library() -> Path:
    found = kernels.trt_library()
    if found is None:
        pytest.skip(kernels.why_no_trt_library())
    return found


def run(code: str, *args: str | Path, **environment: str) -> str:
    """Run code in a process of its own, which must not die; return what it printed."""
    command = [sys.executable, "-c", code, *map(str, args)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-2000:])
    return ran.stdout


# --- the wheel of TensorRT for RTX ---


@needs_rtx
def test_the_fault_is_cured_through_links_in_the_cache(trained: Path, library: Path, tmp_path: Path) -> None:
    given = {"ROBUST_EXPORT_CACHE": str(tmp_path / "cache"), "ROBUST_EXPORT_TRT_LIBRARY": str(library)}
    for _ in range(2):  # the second finds the links
        assert int(run(PARSE, trained / "model.onnx", **given)) > 0
    [folder] = (tmp_path / "cache").iterdir()
    assert {p.name for p in folder.iterdir()} == {rtx_wheel.RTX_LIBRARY, rtx_wheel.RTX_PARSER}
    (folder / rtx_wheel.RTX_LIBRARY).unlink()
    (folder / rtx_wheel.RTX_LIBRARY).symlink_to("a-wheel-that-is-gone")
    assert int(run(PARSE, trained / "model.onnx", **given)) > 0
    wheel = importlib.util.find_spec("tensorrt_rtx_libs")
    assert wheel is not None
    assert wheel.origin is not None
    assert not (Path(wheel.origin).parent / rtx_wheel.RTX_LIBRARY).exists()  # nothing was written there


@needs_rtx
@pytest.mark.parametrize("how", ["early", "no cache"])
def test_a_fault_that_cannot_be_cured_is_said(trained: Path, library: Path, tmp_path: Path, how: str) -> None:
    cache = tmp_path / "cache"
    if how == "no cache":
        cache.write_text("a file where the folder should be")
    given = {"ROBUST_EXPORT_CACHE": str(cache), "ROBUST_EXPORT_TRT_LIBRARY": str(library)}
    said = run(PARSE, trained / "model.onnx", how, **given)
    assert said.startswith("ArtifactError TensorRT for RTX's ONNX parser looks for libtensorrt_rtx.so")
    assert "ln -s libtensorrt_rtx.so.1 " in said


@needs_rtx
def test_a_link_that_the_loader_finds_is_enough(trained: Path, library: Path, tmp_path: Path) -> None:
    wheel = importlib.util.find_spec("tensorrt_rtx_libs")
    assert wheel is not None
    assert wheel.origin is not None
    target = Path(wheel.origin).parent / f"{rtx_wheel.RTX_LIBRARY}.1"
    (tmp_path / rtx_wheel.RTX_LIBRARY).symlink_to(target)
    given = {"LD_LIBRARY_PATH": str(tmp_path), "ROBUST_EXPORT_TRT_LIBRARY": str(library)}
    assert int(run(PARSE, trained / "model.onnx", "early", **given)) > 0


# --- finding ---


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="did you mean 'rtx'"):
        find("rtxx")
    monkeypatch.setattr(rtx_wheel, "spec", lambda module: None)
    with pytest.raises(ArtifactError, match=r"pip install 'robust-export\[tensorrt\]' or .*\[rtx\]"):
        find()
    with pytest.raises(ArtifactError, match=r"\(tensorrt_rtx cannot be imported\): .*\[rtx\]"):
        find("rtx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("__version__ = '8.6.1'", r"tensorrt is of version 8\.6\.1; expected 10 or later"),
        ("raise FileNotFoundError('libnvinfer.so.10')", "cannot be imported: libnvinfer.so.10. Install"),
    ],
)
def test_a_tensorrt_that_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    variants._import.cache_clear()
    try:
        with pytest.raises(ArtifactError, match=message):
            find("auto")  # it goes before that for RTX
    finally:
        sys.modules.pop("tensorrt", None)
        variants._import.cache_clear()


@needs_rtx
def test_what_rtx_knows() -> None:
    found = find("rtx")
    assert found is find("rtx")
    assert found.title.startswith("TensorRT for RTX 1.")
    assert {(7, 5), (8, 9), (12, 0)} <= set(found.capabilities)
    assert found.capabilities[12, 0] == found.trt.ComputeCapability.SM120
    assert found.flag("BuilderFlag", "TF32") == found.trt.BuilderFlag.TF32
    assert found.flag("BuilderFlag", "NO_SUCH_FLAG") is None
    assert found.flag("NoSuchFlags", "TF32") is None


# --- what is logged ---


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
def test_of_many_errors_those_that_matter(errors: list[str], expected: str) -> None:
    assert summary(errors) == expected


@needs_rtx
def test_the_logger_keeps_errors_until_they_are_taken() -> None:
    found = find("rtx")
    severity = found.trt.ILogger.Severity
    found.logger.take()
    found.logger.log(severity.WARNING, "a warning")
    assert found.problem() == "it gave no reason"
    found.logger.log(severity.ERROR, "an error")
    assert found.problem() == "an error"
    assert found.problem() == "it gave no reason"


# --- plugins ---

LOAD = """
import sys
from pathlib import Path
from robust_export.errors import ArtifactError
from robust_export.runtimes.tensorrt import find, load_plugins
for path in sys.argv[1:]:
    try:
        load_plugins(find("rtx"), Path(path))
        print("loaded")
    except ArtifactError as error:
        print(error)
"""


@needs_rtx
def test_a_library_is_loaded_once_a_process(library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    shutil.copy(library, other)
    link = tmp_path / "link.so"
    link.symlink_to(library)
    first, again, through_link, second = run(LOAD, library, library, link, other).splitlines()
    assert (first, again, through_link) == ("loaded",) * 3
    assert f"{other} cannot be registered: this process has the plugins of {library}" in second


@needs_rtx
def test_a_library_of_no_use_is_refused_and_a_good_one_is_taken_then(library: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.so"
    garbage.write_bytes(b"no library")
    plain = Path(next(p for p in kernels.cache().rglob("libsparta_ort.so")))
    said = run(LOAD, garbage, tmp_path / "missing.so", plain, library).splitlines()
    assert "garbage.so is no usable plugin library" in said[0]
    assert "missing.so is no usable plugin library" in said[1]
    assert "does not take the plugins of" in said[2]
    assert "robust-export plugins build" in said[2]
    assert said[3] == "loaded"


# --- the GPU ---


class Runtime:
    """Stands in for cuda.bindings.runtime."""

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
def test_the_gpu_that_is_there(
    monkeypatch: pytest.MonkeyPatch, status: int, expected: tuple[int, int] | None
) -> None:
    bindings = SimpleNamespace(runtime=Runtime(status))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=bindings))
    assert gpu() == expected


def test_without_bindings_nobody_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ArtifactError, match="pip install cuda-bindings"):
        gpu()
