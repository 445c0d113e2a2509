"""The CUDA kernels on the CPU under sanitizers (plugins/tests/cuda_test.cpp), with and without a fault.

One program contains all faults; the environment variable PLANTED_FAULT selects one when it runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from robust_export.kernels.paths import source_folder
from tests.kernels.build_cache import build_once
from tests.kernels.compiling import kernels_on_cpu, run_command, tools_or_skip

KERNEL, GEOMETRY = "cuda_kernel.h", "cuda_geometry.h"

FAULTS = {
    "row outside the feature map": (
        KERNEL, "clamp_index(row, h)", "(FAULT ? (row < 0 ? 0 : row) : clamp_index(row, h))",
    ),
    "column outside the feature map": (
        KERNEL,
        "offset = row_start + clamp_index(column, w);",
        "offset = row_start + (FAULT ? column : clamp_index(column, w));",
    ),
    "rows written outside the feature map": (
        KERNEL, "if (top + o >= h) break;", "if (!FAULT && top + o >= h) break;",
    ),
    "columns written outside the feature map": (
        KERNEL, "if (left + o >= w) break;", "if (!FAULT && left + o >= w) break;",
    ),
    "threads after the last": (
        KERNEL,
        "if (thread >= nchw_threads(n, c, h, w, V, k)) return;",
        "if (!FAULT && thread >= nchw_threads(n, c, h, w, V, k)) return;",
    ),
    "unaligned vector": (GEOMETRY, "&& alignment >= 16 ", "&& (FAULT || alignment >= 16) "),
    "weights of padding channels": (
        KERNEL, "if (channel + t / (k * k) < c)", "if (FAULT || channel + t / (k * k) < c)",
    ),
    "bias of padding channels": (
        KERNEL,
        "channel_bias = channel + j < c ?",
        "channel_bias = FAULT || channel + j < c ?",
    ),
    "padding channels not cleared": (
        KERNEL,
        "store_rounded(channel + j < c ? activate",
        "store_rounded(FAULT || channel + j < c ? activate",
    ),
    "flipped weights": (
        KERNEL,
        "weights[a * k + b] * value[v + b]",
        "weights[a * k + (FAULT ? k - 1 - b : b)] * value[v + b]",
    ),
    "no zero padding": (
        KERNEL,
        "if (row < 0 || row >= h || column < 0 || column >= w) value[j] = 0.0f;",
        "if (!FAULT && (row < 0 || row >= h || column < 0 || column >= w)) value[j] = 0.0f;",
    ),
    "too few blocks": (
        GEOMETRY,
        "return ceil_div(threads, block_threads);",
        "return FAULT ? threads / block_threads : ceil_div(threads, block_threads);",
    ),
}  # fmt: skip

SELECT = """
#include <cstdlib>
inline const int planted_fault = std::getenv("PLANTED_FAULT") ? std::atoi(std::getenv("PLANTED_FAULT")) : -1;
"""

RUNTIME_FUNCTIONS = ("int vector_width(", "int64_t block_count(")  # read planted_fault, so are not constexpr


def plant_faults(folder: Path) -> None:
    """Change a copy of plugins/core so that planted_fault selects a fault."""
    for number, (name, correct, faulty) in enumerate(FAULTS.values()):
        source = (folder / name).read_text()
        assert correct in source, f"{correct!r} is no longer in {name}: update FAULTS"
        (folder / name).write_text(
            source.replace(correct, faulty.replace("FAULT", f"(planted_fault == {number})"))
        )
    geometry = (folder / GEOMETRY).read_text()
    for function in RUNTIME_FUNCTIONS:
        assert f"constexpr {function}" in geometry
        geometry = geometry.replace(f"constexpr {function}", f"inline {function}")
    (folder / GEOMETRY).write_text(geometry.replace("#pragma once", f"#pragma once\n{SELECT}"))


@pytest.fixture(scope="module")
def program() -> Path:
    """Return the test program with all faults, compiled with AddressSanitizer and UBSan."""
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = kernels_on_cpu(*sanitizers, "-Wno-psabi", "-Wno-unknown-pragmas")

    def build(folder: Path) -> None:
        core = shutil.copytree(source_folder() / "core", folder / "core")
        plant_faults(core)
        test = source_folder() / "tests" / "cuda_test.cpp"
        run_command([*command, f"-I{core}", str(test), "-o", str(folder / "cuda_test")])

    inputs: list[str | Path] = [tools_or_skip().version, *command, source_folder(), Path(__file__)]
    return build_once("cuda-faults", inputs, build) / "cuda_test"


def run(program: Path, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the test program with a planted fault; -1 for none."""
    environment = os.environ | {"PLANTED_FAULT": str(number)}
    command = [str(program), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_kernels_are_correct(program: Path) -> None:
    result = run(program, -1)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_detected(program: Path, fault: str) -> None:
    assert run(program, list(FAULTS).index(fault), "6").returncode != 0
