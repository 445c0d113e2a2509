"""The machine code of the CUDA kernels for every architecture, read back from its disassembly."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from robust_export.errors import BuildError
from robust_export.kernels import nvrtc
from robust_export.kernels.libraries import trt_library
from robust_export.kernels.nvrtc import (
    Kernel,
    MachineCode,
    compile_kernels,
    cuobjdump,
    disassemble,
    nvrtc_version,
)
from robust_export.kernels.paths import source_folder
from tests.kernels.build_cache import build_once
from tests.kernels.compiling import all_kernels

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

MAX_REGISTERS = {1: 102, 3: 102, 5: 255, 7: 255}
"""Limit of the NCHW kernels by k. For k = 1 and 3 five blocks of 128 threads fit in 65536 registers."""

MANGLED = re.compile(
    r"(?:nchw|nhwc8)_kernelI(f|6__half|13__nv_bfloat16)Li(\d)E(?:Li(\d)E)?Lb([01])E"
)  # the kernels of cuda_launch.cu: type, k, vector (NCHW only), add
TYPES = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}


def skip_unless_refused(error: BuildError) -> None:
    """Skip the test if a tool is missing; raise the error if the compiler refused the kernels."""
    if "refuses" in str(error):
        raise error
    pytest.skip(str(error))


def compiled(architecture: str) -> Mapping[str, MachineCode]:
    """Return the properties of every kernel for an architecture, by `Kernel.name`.

    The machine code is nvcc's in the TensorRT library if that is built, else NVRTC's.
    """
    library = trt_library()

    def build(folder: Path) -> None:
        code = from_library(library, architecture, folder) if library else {}
        code = code or disassemble(compile_kernels(all_kernels(), architecture))
        rows = {name: [c.registers, c.stack, c.local, sorted(c.accesses)] for name, c in code.items()}
        (folder / "code.json").write_text(json.dumps(rows))

    try:
        origin = [library] if library else [source_folder() / "core", str(nvrtc_version())]
        inputs = [architecture, *origin, Path(__file__), Path(nvrtc.__file__)]
        file = build_once(f"cubin-{architecture}", inputs, build) / "code.json"
    except BuildError as error:
        skip_unless_refused(error)
        raise
    return {
        name: MachineCode(registers, stack, local, frozenset(accesses))
        for name, (registers, stack, local, accesses) in json.loads(file.read_text()).items()
    }


def from_library(library: Path, architecture: str, folder: Path) -> dict[str, MachineCode]:
    """Return the kernels in a library, {} if it was not compiled for the architecture."""
    command = [cuobjdump(), "-xelf", architecture, str(library)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    codes = [disassemble(cubin.read_bytes()) for cubin in folder.glob("*.cubin")]
    return {parse_name(name).name: code for by_name in codes for name, code in by_name.items()}


def parse_name(mangled: str) -> Kernel:
    """Return the kernel with a mangled name of cuda_launch.cu."""
    match = MANGLED.search(mangled)
    assert match is not None, mangled
    return Kernel(TYPES[match[1]], int(match[2]), int(match[3] or 0), match[4] == "1")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code(architecture: str) -> None:
    """No kernel spills, 128-bit kernels use 128-bit accesses only, registers stay within their limit."""
    codes = compiled(architecture)
    assert set(codes) == {kernel.name for kernel in all_kernels()}
    for kernel in all_kernels():
        code = codes[kernel.name]
        assert (code.stack, code.local) == (0, 0), kernel
        assert not [a for a in code.accesses if a.startswith(("LDL", "STL"))], kernel
        limit = MAX_REGISTERS[kernel.k] if kernel.vector else 255 if kernel.add else 168
        assert code.registers <= limit, kernel
        stores = {a for a in code.accesses if a.startswith("STG")}
        loads = {a for a in code.accesses if a.startswith("LDG")}
        assert loads
        assert stores
        assert any(".128" in a for a in loads) == kernel.has_wide_accesses, kernel
        assert all(".128" in a for a in stores) == kernel.has_wide_accesses, kernel


def test_ptx_has_every_kernel() -> None:
    """PTX for the oldest architecture has every kernel and names that architecture."""

    def build(folder: Path) -> None:
        (folder / "kernels.ptx").write_bytes(compile_kernels(all_kernels(), "compute_75"))

    try:
        inputs: list[str | Path] = [source_folder() / "core", str(nvrtc_version())]
        text = (build_once("ptx", inputs, build) / "kernels.ptx").read_text()
    except BuildError as error:
        skip_unless_refused(error)
        raise
    assert re.search(r"\.target sm_75\b", text)
    assert set(re.findall(r"\.entry (\w+)\(", text)) == {kernel.name for kernel in all_kernels()}


def test_number_of_kernels() -> None:
    """all_kernels() has as many kernels as the rules of cuda_dispatch.h give."""
    float32 = 4 * 2 * 2  # kernel sizes, vectors (4 and 1), with and without residual
    half = 2 * (4 * 3 * 2 + 2 * 2)  # types; the same with vectors 8, 2, 1; NHWC8 for two kernel sizes
    assert len(set(all_kernels())) == float32 + half


def test_spills_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """With registers for 16 blocks, the largest kernel must spill."""
    kernel = Kernel("float32", 7, 4)
    source = kernel.source().replace("nchw_min_blocks(7)", "16")
    monkeypatch.setattr(Kernel, "source", lambda self: source)
    try:
        code = disassemble(compile_kernels([kernel], "sm_80"))[kernel.name]
    except BuildError as error:
        skip_unless_refused(error)
        raise
    assert code.stack > 0
    assert [a for a in code.accesses if a.startswith(("LDL", "STL"))]


def test_compiler_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "cuda_kernel.h").write_text("this is no C++\n")
    monkeypatch.setattr("robust_export.kernels.nvrtc.source_folder", lambda: tmp_path)
    with pytest.raises(BuildError, match=r"(?s)NVRTC refuses the kernels for sm_80.*cuda_kernel\.h"):
        compile_kernels([], "sm_80")
