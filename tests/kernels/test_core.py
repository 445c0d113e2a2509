"""The C++ test programs of plugins/tests: CPU kernels, and CUDA kernels on the CPU, against float64."""

from __future__ import annotations

import pytest

from tests.kernels.compiling import cmake_build, ctest, cuda_include


@pytest.mark.parametrize("sanitizers", ["", "address,undefined", "thread"])
def test_programs_pass(sanitizers: str) -> None:
    """Every instruction set of this CPU; ctest shows the others as skipped.

    The CUDA kernels on the CPU run only under sanitizers: no user runs them as g++ compiles them.
    """
    include = cuda_include() if sanitizers else ""
    tree = cmake_build(
        f"core-{sanitizers.replace(',', '-') or 'release'}",
        {"SPARTA_SANITIZE": sanitizers, "SPARTA_CUDA_INCLUDE": include},
    )
    ctest(tree)
