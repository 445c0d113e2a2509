"""Building the kernels with CMake: a library for ONNX Runtime, and one for TensorRT where it can be."""

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
from robust_export.kernels.headers.onnxruntime import find_headers
from robust_export.kernels.headers.tensorrt import find_tensorrt_headers
from robust_export.kernels.libraries import load_problem, open_trt_library
from robust_export.kernels.paths import ORT_LIBRARY, TRT_LIBRARY, build_folder, cache, sources
from robust_export.kernels.toolchain import NO_NVCC, Tools, architectures, find_tools, run
from robust_export.utils.files import replace_folder, write_json

FACTS = "build.json"


@dataclass(frozen=True)
class Build:
    """A finished build: the libraries and what made them."""

    path: Path  # of the library for ONNX Runtime
    tools: Tools
    headers: str  # where ONNX Runtime's were found
    without_cuda: str | None  # why there is no kernel for GPUs in it, where one was tried
    tensorrt: Path | None  # the library for TensorRT
    tensorrt_headers: str | None  # where TensorRT's were found
    without_tensorrt: str | None  # why there is no library for it
    architectures: str | None  # the GPUs that were compiled for, in CMake's words


@dataclass(frozen=True)
class Plan:
    """What a build is asked for: with equal plans it need not be made again."""

    tools: Tools
    onnxruntime: Headers
    tensorrt: Headers | None
    without_tensorrt: str | None  # what it lacks from the start
    ort_cuda: bool  # this ONNX Runtime could use a kernel for GPUs, and nvcc is there to compile it
    architectures: str | None

    @property
    def tag(self) -> str:
        """Return 12 hexadecimal digits that change with everything that goes into a build but sources."""
        tools = self.tools
        flags = [os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS", "CUDAFLAGS")]
        nvcc = f"{tools.nvcc} {tools.nvcc_version} {self.architectures}" if self.architectures else ""
        tensorrt = self.tensorrt.digest if self.tensorrt else ""
        parts = [tools.compiler, tools.version, nvcc, str(self.ort_cuda), self.onnxruntime.digest, tensorrt]
        return hashlib.sha256("\n".join([*parts, *flags]).encode()).hexdigest()[:12]


def build(force: bool = False) -> Build:
    """Build the kernels for this machine, or return the build that is there already.

    The new build takes its place in one rename: it is whole or absent, whatever interrupts it. What a kernel
    for GPUs or the plugin for TensorRT lacks, or fails with, costs only itself.

    Raises:
        BuildError: if a tool or a header is missing, or the compiler fails (with its last lines).
        InvalidValue: if ROBUST_EXPORT_CUDA_ARCHS is no list of GPUs.
    """
    source, plan = sources(), _plan()
    target = build_folder(plan.tag)
    if not force and (target / ORT_LIBRARY).is_file():
        return _finished(target, plan.tools)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:
        made = Path(work) / "made"
        made.mkdir()
        write_json(made / FACTS, _make(source, Path(work), made, plan))
        try:
            replace_folder(made, target)
        except OSError:  # another build of the same was faster
            if not (target / ORT_LIBRARY).is_file():
                raise
    return _finished(target, plan.tools)


def _plan() -> Plan:
    """Return what can be built here."""
    import onnxruntime

    tools, onnx_headers = find_tools(), find_headers(cache() / "headers")
    tensorrt, without = None, None
    try:
        tensorrt = find_tensorrt_headers()
    except BuildError as error:
        if os.environ.get("TENSORRT_INCLUDE_DIR"):
            raise  # asked for by name
        without = str(error)
    if tools.nvcc is None:
        tensorrt, without = None, NO_NVCC
    ort_cuda = tools.nvcc is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    gpus = architectures(tools.nvcc) if tools.nvcc and (ort_cuda or tensorrt) else None
    return Plan(tools, onnx_headers, tensorrt, without, ort_cuda, gpus)


def _make(source: Path, work: Path, made: Path, plan: Plan) -> dict[str, Any]:
    """Build what the plan says into `made`; return the facts of the build."""
    common = {"CMAKE_BUILD_TYPE": "Release", "CMAKE_CXX_COMPILER": plan.tools.compiler,
              "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(made)}  # fmt: skip
    on_gpus = common | {
        "SPARTA_CUDA": "ON", "CMAKE_CUDA_COMPILER": str(plan.tools.nvcc),
        "CMAKE_CUDA_ARCHITECTURES": str(plan.architectures),
    }  # fmt: skip
    ort = {"SPARTA_ORT_INCLUDE": str(plan.onnxruntime.path)}
    without_cuda, without_tensorrt = None, plan.without_tensorrt
    gpu_folder = work / "gpu"  # of both libraries, so that nvcc compiles the kernels once
    if plan.ort_cuda:
        try:
            _compile(source, gpu_folder, "sparta_ort", on_gpus | ort, plan.tools)
        except BuildError as error:
            without_cuda = str(error)  # such as a compiler that is too new for nvcc
    if not plan.ort_cuda or without_cuda:
        _compile(source, work / "cpu", "sparta_ort", common | ort | {"SPARTA_CUDA": "OFF"}, plan.tools)
    if problem := load_problem(made / ORT_LIBRARY):
        raise BuildError(f"the library was built, but ONNX Runtime does not load it: {problem}")
    if plan.tensorrt:
        try:
            options = on_gpus | {"SPARTA_TRT_INCLUDE": str(plan.tensorrt.path)}
            _compile(source, gpu_folder, "sparta_trt", options, plan.tools)
            open_trt_library(made / TRT_LIBRARY)
        except BuildError as error:
            without_tensorrt = str(error)
            (made / TRT_LIBRARY).unlink(missing_ok=True)
    return {
        "tools": asdict(plan.tools), "headers": plan.onnxruntime.origin, "without_cuda": without_cuda,
        "tensorrt_headers": plan.tensorrt.origin if plan.tensorrt else None,
        "without_tensorrt": without_tensorrt, "architectures": plan.architectures,
    }  # fmt: skip


def _finished(target: Path, tools: Tools) -> Build:
    """Return the build in a folder of the cache."""
    facts = json.loads((target / FACTS).read_text())
    tensorrt = target / TRT_LIBRARY
    return Build(
        target / ORT_LIBRARY, tools, facts["headers"], facts["without_cuda"],
        tensorrt if tensorrt.is_file() else None,
        facts["tensorrt_headers"], facts["without_tensorrt"], facts["architectures"],
    )  # fmt: skip


def _compile(source: Path, work: Path, target: str, options: dict[str, str], tools: Tools) -> None:
    """Configure and build one target; in a folder of an earlier one what it has in common is kept."""
    given = [f"-D{name}={value}" for name, value in options.items()]
    configure = [tools.cmake, "-S", str(source), "-B", str(work), *given]
    for command in (configure, [tools.cmake, "--build", str(work), "--target", target, "--parallel"]):
        ran = run(command)
        if ran.returncode:
            lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
            shown = "\n  ".join(lines[-12:])
            raise BuildError(f"`{' '.join(command[:2])} ...` failed with {tools.version}:\n  {shown}")
