"""The C++ test programs of plugins/tests: CPU kernels, and CUDA kernels on the CPU, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_export.errors import BuildError
from robust_export.kernels.headers.onnxruntime import find_ort_headers
from robust_export.kernels.libraries import ort_load_error
from robust_export.kernels.paths import cache_folder
from tests.kernels.compiling import cmake_build, ctest, cuda_include


@pytest.fixture(scope="module")
def release() -> Path:
    """Return a build tree as users compile it, but for the CPU alone."""
    try:
        headers = find_ort_headers(cache_folder() / "headers").path
    except BuildError as error:
        pytest.skip(str(error))
    targets = ("core_test", "exponential_test", "image_test", "sparta_ort")
    return cmake_build("core-release", {"SPARTA_ORT_INCLUDE": str(headers)}, *targets)


def test_programs_pass(release: Path) -> None:
    """Every instruction set of this CPU; ctest shows the others as skipped."""
    ctest(release)


def test_library_without_cuda_loads(release: Path) -> None:
    assert ort_load_error(release / "libsparta_ort.so") is None


def test_programs_pass_under_address_sanitizer() -> None:
    """Also UBSan. The CUDA kernels run under both in test_cuda_kernel.py."""
    options = {"SPARTA_SANITIZE": "address,undefined", "SPARTA_CUDA_INCLUDE": cuda_include()}
    targets = ["core_test", "exponential_test", "image_test"]
    targets += ["harness_test"] if cuda_include() else []
    ctest(cmake_build("core-address", options, *targets), ".", "-E", "cuda_on_cpu")


def test_programs_pass_under_thread_sanitizer() -> None:
    """The programs with several threads."""
    options = {"SPARTA_SANITIZE": "thread", "SPARTA_CUDA_INCLUDE": cuda_include()}
    targets = ["core_test", "image_test"] + (["harness_test", "cuda_test"] if cuda_include() else [])
    ctest(cmake_build("core-thread", options, *targets))
