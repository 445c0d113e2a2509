"""Build the kernels with CMake: the library for ONNX Runtime and, if possible, the one for TensorRT."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robust_export.errors import BuildError
from robust_export.kernels.headers.folder import Headers
from robust_export.kernels.headers.onnxruntime import find_ort_headers
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from robust_export.kernels.libraries import ort_load_error, trt_library_info
from robust_export.kernels.paths import ORT_LIBRARY, TRT_LIBRARY, build_folder, cache_folder, source_folder
from robust_export.kernels.toolchain import NO_NVCC, Tools, architectures, find_tools, run
from robust_export.utils.files import replace_folder, write_json

BUILD_INFO = "build.json"


@dataclass(frozen=True)
class Build:
    """A finished build."""

    path: Path  # the library for ONNX Runtime
    tools: Tools
    headers: str  # origin of ONNX Runtime's headers
    without_cuda: str | None  # why compiling the CUDA kernel for ONNX Runtime failed; None if it did not
    tensorrt: Path | None  # the library for TensorRT
    tensorrt_headers: str | None  # origin of TensorRT's headers
    without_tensorrt: str | None  # why there is no library for TensorRT
    architectures: str | None  # value of CMAKE_CUDA_ARCHITECTURES


@dataclass(frozen=True)
class Plan:
    """The inputs of a build, apart from the sources."""

    tools: Tools
    ort_headers: Headers
    tensorrt_headers: Headers | None
    without_tensorrt: str | None  # why the TensorRT library is not planned
    ort_cuda: bool  # compile the CUDA kernel for ONNX Runtime
    architectures: str | None

    @property
    def tag(self) -> str:
        """Return 12 hexadecimal digits of a digest of the plan and the compiler flags of the environment."""
        tools = self.tools
        flags = [os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS", "CUDAFLAGS")]
        nvcc = f"{tools.nvcc} {tools.nvcc_version} {self.architectures}" if self.architectures else ""
        tensorrt = self.tensorrt_headers.digest if self.tensorrt_headers else ""
        parts = [tools.compiler, tools.version, nvcc, str(self.ort_cuda), self.ort_headers.digest, tensorrt]
        return hashlib.sha256("\n".join([*parts, *flags]).encode()).hexdigest()[:12]


def build(force: bool = False) -> Build:
    """Build the kernels for this machine, or return the existing build.

    A new build is moved to its folder by one rename, so an interruption leaves no partial build. If the CUDA
    kernel or the TensorRT library cannot be built, the rest is built without it.

    Raises:
        BuildError: if a tool or a header is missing, or the compiler fails (with its last lines).
        InvalidValue: if ROBUST_EXPORT_CUDA_ARCHS is not a list of architectures.
    """
    source, plan = source_folder(), _make_plan()
    target = build_folder(plan.tag)
    if not force and (target / ORT_LIBRARY).is_file():
        return _read_build(target, plan.tools)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:
        output = Path(work) / "output"
        output.mkdir()
        write_json(output / BUILD_INFO, _build_libraries(source, Path(work), output, plan))
        try:
            replace_folder(output, target)
        except OSError:  # a concurrent build of the same plan finished first
            if not (target / ORT_LIBRARY).is_file():
                raise
    return _read_build(target, plan.tools)


def _make_plan() -> Plan:
    """Return what can be built on this machine."""
    import onnxruntime

    tools, ort_headers = find_tools(), find_ort_headers(cache_folder() / "headers")
    tensorrt, without_tensorrt = None, None
    try:
        tensorrt = find_tensorrt_headers()
    except BuildError as error:
        if os.environ.get("TENSORRT_INCLUDE_DIR"):
            raise  # explicitly requested
        without_tensorrt = str(error)
    if tools.nvcc is None:
        tensorrt, without_tensorrt = None, NO_NVCC
    ort_cuda = tools.nvcc is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    gpus = architectures(tools.nvcc) if tools.nvcc and (ort_cuda or tensorrt) else None
    return Plan(tools, ort_headers, tensorrt, without_tensorrt, ort_cuda, gpus)


def _build_libraries(source: Path, work: Path, output: Path, plan: Plan) -> dict[str, Any]:
    """Build the libraries into `output`. Return the contents of BUILD_INFO."""
    common = {"CMAKE_BUILD_TYPE": "Release", "CMAKE_CXX_COMPILER": plan.tools.compiler,
              "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(output)}  # fmt: skip
    cuda = common | {
        "SPARTA_CUDA": "ON", "CMAKE_CUDA_COMPILER": str(plan.tools.nvcc),
        "CMAKE_CUDA_ARCHITECTURES": str(plan.architectures),
    }  # fmt: skip
    ort = {"SPARTA_ORT_INCLUDE": str(plan.ort_headers.path)}
    without_cuda, without_tensorrt = None, plan.without_tensorrt
    cuda_work = work / "cuda"  # one build tree for both libraries, so that nvcc compiles the kernels once
    if plan.ort_cuda:
        try:
            _compile(source, cuda_work, "sparta_ort", cuda | ort, plan.tools)
        except BuildError as error:  # such as a host compiler that is too new for nvcc
            without_cuda = str(error)
    if not plan.ort_cuda or without_cuda:
        _compile(source, work / "cpu", "sparta_ort", common | ort | {"SPARTA_CUDA": "OFF"}, plan.tools)
    if error_text := ort_load_error(output / ORT_LIBRARY):
        raise BuildError(f"the library was built, but ONNX Runtime does not load it: {error_text}")
    if plan.tensorrt_headers:
        try:
            options = cuda | {"SPARTA_TRT_INCLUDE": str(plan.tensorrt_headers.path)}
            _compile(source, cuda_work, "sparta_trt", options, plan.tools)
            trt_library_info(output / TRT_LIBRARY)
        except BuildError as error:
            without_tensorrt = str(error)
            (output / TRT_LIBRARY).unlink(missing_ok=True)
    return {
        "tools": asdict(plan.tools), "headers": plan.ort_headers.origin, "without_cuda": without_cuda,
        "tensorrt_headers": plan.tensorrt_headers.origin if plan.tensorrt_headers else None,
        "without_tensorrt": without_tensorrt, "architectures": plan.architectures,
    }  # fmt: skip


def _read_build(folder: Path, tools: Tools) -> Build:
    """Return the build in a folder of the cache."""
    info = json.loads((folder / BUILD_INFO).read_text())
    tensorrt = folder / TRT_LIBRARY
    return Build(
        folder / ORT_LIBRARY, tools, info["headers"], info["without_cuda"],
        tensorrt if tensorrt.is_file() else None,
        info["tensorrt_headers"], info["without_tensorrt"], info["architectures"],
    )  # fmt: skip


def _compile(source: Path, work: Path, target: str, options: dict[str, str], tools: Tools) -> None:
    """Configure and build one CMake target in the build tree `work`, which may exist."""
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    configure = [tools.cmake, "-S", str(source), "-B", str(work), *definitions]
    for command in (configure, [tools.cmake, "--build", str(work), "--target", target, "--parallel"]):
        result = run(command)
        if result.returncode:
            lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
            last_lines = "\n  ".join(lines[-12:])
            raise BuildError(f"`{' '.join(command[:2])} ...` failed with {tools.version}:\n  {last_lines}")
