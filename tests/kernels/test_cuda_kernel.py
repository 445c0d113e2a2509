"""The kernels for GPUs on the CPU (plugins/tests): faults planted in their source must not go unseen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from robust_export import kernels
from tests.kernels.compiling import kernels_on_cpu

FAULTS = {
    "a row beyond the plane": ("cuda_kernel.h", "inside(row, h)) * w", "row < 0 ? 0 : row) * w"),
    "a column beyond the plane": ("cuda_kernel.h", "from + inside(column, w);", "from + column;"),
    "rows written beyond the plane": ("cuda_kernel.h", "if (top + o >= h) break;", ""),
    "columns written beyond the plane": ("cuda_kernel.h", "if (left + o >= w) break;", ""),
    "threads beyond the last": (
        "cuda_kernel.h",
        "if (number >= plane_threads(n, c, h, w, V, k)) return;",
        "",
    ),
    "a vector that is not aligned": ("cuda_geometry.h", "&& alignment >= 16 ", ""),
    "taps of channels that pad": ("cuda_kernel.h", "if (channel + t / (k * k) < c)", ""),
    "a bias of channels that pad": (
        "cuda_kernel.h",
        "channel + j < c ? widen(bias[channel + j]) : 0.0f",
        "widen(bias[channel + j])",
    ),
    "channels that pad not cleared": (
        "cuda_kernel.h",
        "channel + j < c ? activate(value, attention[o][j]) : 0.0f",
        "activate(value, attention[o][j])",
    ),
    "one tap turned": (
        "cuda_kernel.h",
        "taps[a * k + b] * value[v + b]",
        "taps[a * k + k - 1 - b] * value[v + b]",
    ),
    "edges not zero": (
        "cuda_kernel.h",
        "if (row < 0 || row >= h || column < 0 || column >= w) value[j] = 0.0f;",
        "",
    ),
    "too few blocks": (
        "cuda_geometry.h",
        "return ceil_div(threads, block_threads);",
        "return threads / block_threads;",
    ),
}


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    """Return the command that compiles the test, fast, with every access watched."""
    return kernels_on_cpu(
        "-fsanitize=address,alignment", "-fno-sanitize-recover=all", "-Wno-psabi", "-Wno-unknown-pragmas"
    )


def passes(compiler: list[str], folder: Path) -> bool:
    program = folder / "cuda_test"
    subprocess.run(
        [*compiler, f"-I{folder}/core", str(folder / "tests/cuda_test.cpp"), "-o", str(program)],
        check=True, capture_output=True,
    )  # fmt: skip
    return subprocess.run([program, "6"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_a_fault_in_the_kernel_is_seen(compiler: list[str], tmp_path: Path, fault: str) -> None:
    shutil.copytree(kernels.sources(), tmp_path, dirs_exist_ok=True)
    if fault in FAULTS:
        file, right, wrong = FAULTS[fault]
        source = (tmp_path / "core" / file).read_text()
        assert right in source, "the fault has nowhere to be planted: bring it up to date"
        (tmp_path / "core" / file).write_text(source.replace(right, wrong))
    assert passes(compiler, tmp_path) == (fault == "none")
