"""What the kernels for GPUs become: machine code for every architecture, read back from its disassembly."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from robust_export import kernels
from robust_export.errors import BuildError
from robust_export.kernels.nvrtc import (
    Kernel,
    MachineCode,
    compile_kernels,
    cuobjdump,
    every_kernel,
    machine_code,
)

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

MOST_REGISTERS = {1: 102, 3: 102, 5: 255, 7: 255}
"""Of planes, by k: five blocks of 128 threads in 65536 registers for the sizes that networks have."""


NAMED = re.compile(
    r"(?:planes|channels8)_kernelI(f|6__half|13__nv_bfloat16)Li(\d)E(?:Li(\d)E)?Lb([01])E"
)  # as C++ mangles cuda_launch.cu's: type, k, elements of an access where they are planes, add
TYPES = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The machine code in the library that was built, by its architecture; none where nvcc built none."""
    library = kernels.trt_library()
    if library is None:
        return {}
    folder = tmp_path_factory.mktemp("cubins")
    try:
        command = [cuobjdump(), "-xelf", "all", str(library)]
    except BuildError as error:
        pytest.skip(str(error))
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return {file.name.split(".")[-2]: file for file in folder.iterdir()}


def compiled(architecture: str, cubins: dict[str, Path]) -> Mapping[str, MachineCode]:
    """Return the kernels as nvcc made them for the library, or else as NVRTC makes them."""
    try:
        if architecture not in cubins:
            return machine_code(compile_kernels(every_kernel(), architecture))
        found = machine_code(cubins[architecture].read_bytes())
    except BuildError as error:
        if "refuses" in str(error):
            raise
        pytest.skip(str(error))
    return {named(mangled).name: code for mangled, code in found.items()}


def named(mangled: str) -> Kernel:
    found = NAMED.search(mangled)
    assert found is not None, mangled
    return Kernel(TYPES[found[1]], int(found[2]), int(found[3] or 0), found[4] == "1")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code(architecture: str, cubins: dict[str, Path]) -> None:
    """No kernel spills; those for 128 bits load and store so; registers stay within their bound."""
    found = compiled(architecture, cubins)
    assert set(found) == {kernel.name for kernel in every_kernel()}
    for kernel in every_kernel():
        code = found[kernel.name]
        assert (code.stack, code.local) == (0, 0), kernel
        assert not [a for a in code.accesses if a.startswith(("LDL", "STL"))], kernel
        most = MOST_REGISTERS[kernel.k] if kernel.vector else 255 if kernel.add else 168
        assert code.registers <= most, kernel
        stores = {a for a in code.accesses if a.startswith("STG")}
        loads = {a for a in code.accesses if a.startswith("LDG")}
        assert loads
        assert stores
        assert any(".128" in a for a in loads) == kernel.wide, kernel
        assert all(".128" in a for a in stores) == kernel.wide, kernel


def test_ptx_is_one_for_all() -> None:
    """PTX of the oldest architecture has every kernel, and names the architecture from which it runs."""
    try:
        text = compile_kernels(every_kernel(), "compute_75").decode()
    except BuildError as error:
        pytest.skip(str(error))
    assert re.search(r"\.target sm_75\b", text)
    assert set(re.findall(r"\.entry (\w+)\(", text)) == {kernel.name for kernel in every_kernel()}


def test_every_kernel_is_every_one_that_the_launch_chooses() -> None:
    """Counted by the launch's own rule: types, sizes, widths, layouts, forms."""
    float32 = 4 * 2 * 2  # sizes, widths (4 and 1), forms
    halves = 2 * (4 * 3 * 2 + 2 * 2)  # types; sizes, widths (8, 2, 1), forms; channels8 for two sizes
    assert len(set(every_kernel())) == float32 + halves


def test_a_kernel_that_spills_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With registers for 16 blocks, the largest kernel cannot but spill."""
    kernel = Kernel("float32", 7, 4)
    crowded = kernel.source().replace("plane_blocks_resident(7)", "16")
    monkeypatch.setattr(Kernel, "source", lambda self: crowded)
    try:
        code = machine_code(compile_kernels([kernel], "sm_80"))[kernel.name]
    except BuildError as error:
        pytest.skip(str(error))
    assert code.stack > 0
    assert [a for a in code.accesses if a.startswith(("LDL", "STL"))]


def test_a_compiler_that_refuses_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "cuda_kernel.h").write_text("this is no C++\n")
    monkeypatch.setattr("robust_export.kernels.nvrtc.sources", lambda: tmp_path)
    pytest.importorskip("cuda.bindings.nvrtc")
    with pytest.raises(BuildError, match=r"(?s)NVRTC refuses the kernels for sm_80.*cuda_kernel\.h"):
        compile_kernels([], "sm_80")
    monkeypatch.setattr("robust_export.kernels.nvrtc.sources", kernels.sources)
