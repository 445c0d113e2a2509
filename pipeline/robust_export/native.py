"""The compiled kernels: found, built with CMake into a cache, and loaded.

A build is a folder `<source>-<machine>-<tools>` of the cache: digests of the sources under plugins/ and of
what compiled them, and the kind of CPU. Instructions beyond its baseline (AVX2, AVX-512) are chosen when the
library is loaded, so that a build serves every CPU of its kind. Nothing here needs torch.

Environment: ROBUST_EXPORT_ORT_LIBRARY is a library to use instead ("" for none); ROBUST_EXPORT_CACHE the
cache; ONNXRUNTIME_INCLUDE_DIR ONNX Runtime's headers; CXX the compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

from robust_export.errors import BuildError, reason
from robust_export.files import replace_folder, write_json
from robust_export.headers import find_headers

ORT_LIBRARY = "libsparta_ort.so"
KERNEL_SIZES = (1, 3, 5, 7)
HOW = "build it with `robust-export plugins build`"


@dataclass(frozen=True)
class Tools:
    """What compiles the kernels."""

    cmake: str
    compiler: str
    version: str  # the compiler's own first line
    nvcc: str | None  # for the kernel on GPUs, where ONNX Runtime has its CUDA provider
    nvcc_version: str  # its own last line, nothing where there is none


@dataclass(frozen=True)
class Build:
    """A finished build: the library and what made it."""

    path: Path  # of the library for ONNX Runtime
    tools: Tools
    headers: str  # where ONNX Runtime's were found
    without_cuda: str | None = None  # why there is no kernel for GPUs in it, where one was tried


def cache() -> Path:
    """Return the folder that builds and fetched headers are kept in."""
    given = os.environ.get("ROBUST_EXPORT_CACHE")
    folder = Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("robust-export"))
    return folder.absolute()


def sources() -> Path:
    """Return the folder of the kernels' sources: the checkout's plugins/, or the wheel's copy.

    Raises:
        BuildError: if this installation has neither.
    """
    package = Path(__file__).parent
    for folder in (package.parent.parent / "plugins", package / "plugins"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise BuildError(f"this installation has no kernel sources (plugins/) beside {package}; reinstall it")


def ort_library() -> Path | None:
    """Return the library with ai.sparta::Sparta for ONNX Runtime, None where none is built.

    Raises:
        BuildError: if ROBUST_EXPORT_ORT_LIBRARY names a file that is not there.
    """
    given = os.environ.get("ROBUST_EXPORT_ORT_LIBRARY")
    if given is not None:
        if given and not Path(given).is_file():
            raise BuildError(f"ROBUST_EXPORT_ORT_LIBRARY names {given}, which is no file; unset it, or {HOW}")
        return Path(given).absolute() if given else None
    try:
        pattern = f"{_source_digest()}-{platform.machine()}-*/{ORT_LIBRARY}"
    except BuildError:
        return None
    found = sorted((cache() / "plugins").glob(pattern), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def why_no_library() -> str:
    """Return, in one line, why there is no library for ONNX Runtime and how to get it."""
    if os.environ.get("ROBUST_EXPORT_ORT_LIBRARY") == "":
        return "no fused kernel: ROBUST_EXPORT_ORT_LIBRARY is set to nothing"
    try:
        find_tools()
    except BuildError as error:
        return f"no fused kernel: {error}"
    return f"no fused kernel: it is not built; {HOW}"


def find_tools() -> Tools:
    """Return CMake and the C++ compiler.

    Raises:
        BuildError: if one of them is missing, saying how to get it.
    """
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=beside)
    if cmake is None:
        raise BuildError("there is no CMake (pip install cmake), so the kernels cannot be built")
    asked = os.environ.get("CXX")
    names = [asked] if asked else ["c++", "g++", "clang++"]
    compiler = next((found for name in names if (found := shutil.which(name))), None)
    if compiler is None:
        what = f"CXX is {asked!r}, which is no command" if asked else "there is no C++ compiler"
        raise BuildError(f"{what} (Debian: apt-get install g++), so the kernels cannot be built")
    lines = _run([compiler, "--version"]).stdout.splitlines()
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    said = _run([nvcc, "--version"]).stdout.split("\n") if nvcc else [""]
    return Tools(cmake, compiler, lines[0] if lines else "unknown", nvcc, " ".join(said[-2:]).strip())


def build(force: bool = False) -> Build:
    """Build the kernels for this machine, or return the build that is there already.

    The new build takes its place in one rename: it is whole or absent, whatever interrupts it.

    Raises:
        BuildError: if a tool or a header is missing, or the compiler fails (with its last lines).
    """
    source, tools = sources(), find_tools()
    headers = find_headers(cache() / "headers")
    cuda = _wants_cuda(tools)
    flags = [os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS", "CUDAFLAGS")]
    nvcc = f"{tools.nvcc} {tools.nvcc_version}" if cuda else ""
    made_by = [tools.compiler, tools.version, nvcc, headers.digest, *flags]
    tag = hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:12]
    target = cache() / "plugins" / f"{_source_digest()}-{platform.machine()}-{tag}"
    if not force and (target / ORT_LIBRARY).is_file():
        facts = json.loads((target / "build.json").read_text())
        return Build(target / ORT_LIBRARY, tools, facts["headers"], facts["without_cuda"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:
        made = Path(work) / "made"
        made.mkdir()
        without_cuda = None
        try:
            _compile(source, Path(work) / "cmake", made, tools, headers.path, cuda=cuda)
        except BuildError as error:
            if not cuda:
                raise
            without_cuda = str(error)  # such as a compiler that is too new for nvcc
            _compile(source, Path(work) / "cmake-cpu", made, tools, headers.path, cuda=False)
        if problem := load_problem(made / ORT_LIBRARY):
            raise BuildError(f"the library was built, but ONNX Runtime does not load it: {problem}")
        facts = {"tools": asdict(tools), "headers": headers.origin, "without_cuda": without_cuda}
        write_json(made / "build.json", facts)
        try:
            replace_folder(made, target)
        except OSError:  # another build of the same was faster
            if not (target / ORT_LIBRARY).is_file():
                raise
    return Build(target / ORT_LIBRARY, tools, headers.origin, without_cuda)


def load_problem(library: Path) -> str | None:
    """Return what ONNX Runtime says against the library, None if it registers it."""
    import onnxruntime

    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(library))
    except Exception as error:  # ONNX Runtime's exceptions have no common public base
        return reason(error)
    return None


def describe() -> dict[str, Any]:
    """Return what was found, built and loaded, as `plugins info --json` prints it."""
    library = ort_library()
    if library is None:
        entry: dict[str, Any] = {"path": None, "loads": False, "why": why_no_library()}
    else:
        problem = load_problem(library)
        entry = {"path": str(library), "loads": problem is None, "why": problem}
        if problem is None:
            entry |= _what_it_has(library)
    try:
        tools: dict[str, Any] | None = asdict(find_tools())
    except BuildError:
        tools = None
    return {
        "libraries": {
            "onnxruntime": entry,
            "tensorrt": {"path": None, "loads": False, "why": "this version has no TensorRT plugin yet"},
        },
        "tools": tools, "cache": str(cache()),
    }  # fmt: skip


def _what_it_has(library: Path) -> dict[str, Any]:
    """Return what the library's kernels use on this CPU, and whether it has one for GPUs."""
    try:
        handle = ctypes.CDLL(str(library))
        handle.sparta_instructions.restype = ctypes.c_char_p
        instructions = handle.sparta_instructions().decode()
        return {"instructions": instructions, "cuda": bool(handle.sparta_has_cuda())}
    except (OSError, AttributeError):
        return {}  # another library than ours


def _wants_cuda(tools: Tools) -> bool:
    """Return whether this ONNX Runtime could use a kernel for GPUs, and nvcc is there to compile it."""
    import onnxruntime

    return tools.nvcc is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _compile(source: Path, work: Path, made: Path, tools: Tools, headers: Path, *, cuda: bool) -> None:
    options = {
        "CMAKE_BUILD_TYPE": "Release", "CMAKE_CXX_COMPILER": tools.compiler,
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(made), "SPARTA_ORT_INCLUDE": str(headers),
        "SPARTA_CUDA": "ON" if cuda else "OFF",
    }  # fmt: skip
    if cuda:
        options["CMAKE_CUDA_COMPILER"] = str(tools.nvcc)
    configure = [
        tools.cmake, "-S", str(source), "-B", str(work), *(f"-D{k}={v}" for k, v in options.items())
    ]  # fmt: skip
    for command in (configure, [tools.cmake, "--build", str(work), "--parallel"]):
        ran = _run(command)
        if ran.returncode:
            lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
            shown = "\n  ".join(lines[-12:])
            raise BuildError(f"`{' '.join(command[:2])} ...` failed with {tools.version}:\n  {shown}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"could not run {command[0]}: {error.strerror or error}") from error


@functools.cache
def _source_digest() -> str:
    """Return 12 hexadecimal digits that change with the sources of what is built."""
    folder = sources()
    files = [folder / "CMakeLists.txt"]
    for room in ("core", "onnxruntime"):
        files += sorted(path for path in (folder / room).iterdir() if path.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
