"""The kernels in C++, against float64: as they are built, and under sanitizers (plugins/tests)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from robust_export import kernels
from robust_export.errors import BuildError
from tests.kernels.compiling import cuda_include


@pytest.mark.parametrize("sanitize", ["", "address,undefined", "thread"])
def test_kernels_are_right_and_touch_only_what_is_theirs(tmp_path: Path, sanitize: str) -> None:
    """Every set of instructions that this CPU has; the others are reported by ctest as skipped.

    The kernels for GPUs run here under sanitizers alone: as a CPU's compiler makes them, nobody has them.
    """
    try:
        tools = kernels.find_tools()
    except BuildError as error:
        pytest.skip(str(error))
    options = {
        "SPARTA_TESTS": "ON", "SPARTA_SANITIZE": sanitize,
        "SPARTA_CUDA_INCLUDE": cuda_include() if sanitize else "",
        "CMAKE_CXX_COMPILER": tools.compiler, "CMAKE_CXX_FLAGS": "-Werror",
    }  # fmt: skip
    given = [f"-D{name}={value}" for name, value in options.items()]
    configure = [tools.cmake, "-S", str(kernels.sources()), "-B", str(tmp_path), *given]
    ctest = Path(tools.cmake).with_name("ctest")
    for command in (
        configure,
        [tools.cmake, "--build", str(tmp_path), "--parallel", "2"],
        [str(ctest), "--test-dir", str(tmp_path), "--output-on-failure"],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert "100% tests passed" in ran.stdout
