"""The ahead-of-time plugins: their callbacks, and their kernels run on the CPU as TensorRT launches them.

g++ compiles the source that NVRTC compiles to PTX, with plugins/tests/cuda_on_cpu.h; the kernels are then
launched with the grid, block and scalars that the callbacks return.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from robust_export import kernels
from robust_export.errors import ArtifactError, BuildError
from robust_export.export.tensorrt import aot
from robust_export.kernels import nvrtc
from robust_export.nn.sparta import sparta
from robust_export.runtimes.tensorrt.variants import Variant
from tests.export.tensorrt.aot_double import DataType, Plugins, TensorDesc, TensorFormat
from tests.kernels.build_cache import build_once
from tests.kernels.compiling import all_kernels, kernels_on_cpu, run_command, tools_or_skip

TYPES = {
    DataType.FLOAT: (torch.float32, 1e-5),
    DataType.HALF: (torch.float16, 2e-3),
    DataType.BF16: (torch.bfloat16, 2e-2),
}


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, level: object, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def variant(monkeypatch: pytest.MonkeyPatch) -> Variant:
    """A TensorRT whose plugin module is the test double, and a GPU of compute capability 8.9."""
    trt = SimpleNamespace(
        __name__="tensorrt", __version__="11.1", ILogger=SimpleNamespace(Severity=SimpleNamespace(ERROR=1))
    )
    plugins = Plugins()
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugins)
    monkeypatch.setattr(aot, "_registered", set())
    monkeypatch.setattr(aot, "gpu_capability", lambda: (8, 9))
    monkeypatch.setattr(aot, "driver_version", lambda: (99, 0))
    aot._ptx.cache_clear()
    try:
        aot.check_compiler()
    except ArtifactError as error:
        pytest.skip(str(error))
    tensorrt = Variant("tensorrt", trt, Log())
    aot.register(tensorrt)
    trt.plugins = plugins.registered
    return tensorrt


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """Every kernel compiled for the CPU; run_<kernel name> launches it."""
    every = all_kernels()
    source = '#include "cuda_on_cpu.h"\n' + nvrtc.program(every) + "".join(map(starter, every))
    headers = [kernels.source_folder() / name for name in ("core", "tests")]
    command = kernels_on_cpu("-shared", "-fPIC", "-w", *(f"-I{folder}" for folder in headers))

    def build(folder: Path) -> None:
        (folder / "all.cpp").write_text(source)
        run_command([*command, str(folder / "all.cpp"), "-o", str(folder / "all.so")])

    inputs: list[str | Path] = [tools_or_skip().version, *command, source, *headers]
    return ctypes.CDLL(str(build_once("aot-on-cpu", inputs, build) / "all.so"))


def starter(kernel: nvrtc.Kernel) -> str:
    """Return C++ that launches a kernel with TensorRT's argument order: inputs, scalars, outputs."""
    cpp, inputs = nvrtc.TYPES[kernel.type][0], 4 if kernel.add else 3
    given = ", ".join(f"static_cast<{cpp}*>(t[{i}])" for i in range(inputs))
    return (
        f'extern "C" void run_{kernel.name}(void** t, const int* s, unsigned blocks, unsigned threads) {{\n'
        "  std::mt19937 random(1);\n"
        "  cuda_on_cpu::launch(blocks, threads, cuda_on_cpu::Order::random, random, [&] {\n"
        f"    {kernel.name}({given}, s[0], s[1], s[2], s[3], static_cast<{cpp}*>(t[{inputs}]));\n  }});\n}}\n"
    )


def run(
    variant: Variant, library: ctypes.CDLL, dtype: DataType, layout: TensorFormat, k: int, add: bool,
    shape: tuple[int, int, int, int], free_width: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, str]:  # fmt: skip
    """Return the plugin's Sparta, Sparta in float64, and the kernel's name."""
    _, c, h, w = shape
    generator = torch.Generator().manual_seed(hash((k, add, shape)) % 1000)
    kind = TYPES[dtype][0]
    tensors = [torch.randn(shape, generator=generator).to(kind) for _ in range(1 + add)]
    weight = (torch.randn((c, 1, k, k), generator=generator) / k).to(kind)
    bias = torch.randn((c,), generator=generator).to(kind)
    total = sum((t.double() for t in tensors), torch.zeros(shape, dtype=torch.float64))
    expected: torch.Tensor = sparta(total, weight.double(), bias.double())

    free = (-1, c, h, -1 if free_width else w)
    descs = [TensorDesc(free, dtype, layout) for _ in tensors]
    descs += [TensorDesc((c, 1, k, k), dtype), TensorDesc((c,), dtype)]
    output = TensorDesc(free, dtype, layout)
    plugin = variant.trt.plugins["sparta::SpartaAdd" if add else "sparta::Sparta"]
    name, ptx, launch, scalars = plugin["aot_impl"](*descs, (output,), 0)
    assert f".visible .entry {name}(" in ptx.decode()
    sizes = {str(i): size for i, size in enumerate(shape)}
    given = (ctypes.c_int * 4)(*(scalar.at(sizes) for scalar in scalars))
    assert (launch.grid_y, launch.grid_z, launch.block_y, launch.block_z, launch.shared_mem) == (
        1,
        1,
        1,
        1,
        0,
    )

    if layout is TensorFormat.HWC8:
        tensors = [to_nhwc8(t) for t in tensors]
    y = torch.full_like(tensors[0], float("nan"))
    every = [aligned(t) for t in (*tensors, weight, bias, y)]
    pointers = (ctypes.c_void_p * len(every))(*(t.data_ptr() for t in every))
    getattr(library, f"run_{name}")(pointers, given, launch.grid_x.at(sizes), launch.block_x)
    result = every[-1]
    if layout is TensorFormat.HWC8:
        assert not result[..., c:].any()
        result = result[..., :c].permute(0, 3, 1, 2)
    return result.double(), expected, name


def to_nhwc8(feature_maps: torch.Tensor) -> torch.Tensor:
    """Return [N, H, W, C], with C padded with zeros to a multiple of 8."""
    n, c, h, w = feature_maps.shape
    result = torch.zeros((n, h, w, -(-c // 8) * 8), dtype=feature_maps.dtype)
    result[..., :c] = feature_maps.permute(0, 2, 3, 1)
    return result


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy at a multiple of 256 bytes, as TensorRT's buffers are."""
    buffer = torch.empty(tensor.numel() * tensor.element_size() + 256, dtype=torch.uint8)
    start = -buffer.data_ptr() % 256
    copy = (
        buffer[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
    )
    return copy.copy_(tensor)


SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 9, 4, 4),
    (3, 8, 6, 8),
    (2, 5, 3, 16),
    (1, 2, 17, 12),
    (1, 16, 2, 6),
]


@pytest.mark.parametrize("dtype", DataType, ids=lambda d: d.name)
@pytest.mark.parametrize("add", [False, True], ids=["plain", "add"])
def test_nchw_kernels(variant: Variant, library: ctypes.CDLL, dtype: DataType, add: bool) -> None:
    used = set()
    for k in (1, 3, 5, 7):
        for shape in SHAPES:
            for free in (False, True):
                found, expected, name = run(
                    variant, library, dtype, TensorFormat.LINEAR, k, add, shape, free_width=free
                )
                used.add(name)
                bound = TYPES[dtype][1] * max(1, expected.abs().max().item())
                torch.testing.assert_close(found, expected, atol=bound, rtol=0)
                assert free is False or "nchw1" in name
    size = nvrtc.TYPES[aot.DTYPES[dtype.name]][1]
    assert {int(re.findall(r"nchw(\d)", name)[0]) for name in used} == {1, 4 // size, 16 // size}


@pytest.mark.parametrize("dtype", [DataType.HALF, DataType.BF16], ids=lambda d: d.name)
@pytest.mark.parametrize("add", [False, True], ids=["plain", "add"])
@pytest.mark.parametrize("k", [1, 3])
def test_nhwc8_kernels(variant: Variant, library: ctypes.CDLL, dtype: DataType, add: bool, k: int) -> None:
    for shape in SHAPES:
        found, expected, name = run(variant, library, dtype, TensorFormat.HWC8, k, add, shape)
        assert "nhwc8" in name
        bound = TYPES[dtype][1] * max(1, expected.abs().max().item())
        torch.testing.assert_close(found, expected, atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", DataType, ids=lambda d: d.name)
@pytest.mark.parametrize(("k", "add"), [(1, False), (3, True), (5, False), (7, True)])
def test_formats(variant: Variant, dtype: DataType, k: int, add: bool) -> None:
    feature_map, weight, bias = (TensorDesc(s, dtype) for s in ((-1, 8, 4, 4), (8, 1, k, k), (8,)))
    plugin = variant.trt.plugins["sparta::SpartaAdd" if add else "sparta::Sparta"]
    inputs = [*[feature_map] * (1 + add), weight, bias]
    assert plugin["register"](*inputs) == feature_map
    found = plugin["autotune"](*inputs, (feature_map,))
    word = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16"}[dtype.name]
    layouts = [["LINEAR"] * (len(inputs) + 1)]
    if dtype is not DataType.FLOAT and k <= 3:
        layouts.append([*["HWC8"] * (1 + add), "LINEAR", "LINEAR", "HWC8"])
    assert [(c.io_types, c.layouts) for c in found] == [
        (", ".join([word] * (len(inputs) + 1)), ", ".join(layout)) for layout in layouts
    ]


def test_geometry_matches_the_header() -> None:
    header = (kernels.source_folder() / "core" / "cuda_geometry.h").read_text()
    for name, value in (("block_threads", aot.BLOCK_THREADS), ("columns_per_thread", aot.COLUMNS_PER_THREAD)):
        assert f"constexpr int {name} = {value};" in header


def test_callback_error_is_logged(variant: Variant) -> None:
    log: Any = variant.logger
    x, weight, bias = (TensorDesc(s, DataType.FLOAT) for s in ((-1, 8, 4, 4), (8, 1, 9, 9), (8,)))
    with pytest.raises(ArtifactError):
        variant.trt.plugins["sparta::Sparta"]["aot_impl"](x, weight, bias, (x,), 0)
    assert log.lines == ["Sparta's plugin: Sparta's weight has 9 columns; expected 1, 3, 5 or 7"]


def test_second_register_does_nothing(variant: Variant) -> None:
    aot.register(variant)  # the double raises on a second registration


# --- errors ---


def test_rtx_has_no_aot_plugins(rtx: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "check_compiler", lambda: None)
    with pytest.raises(ArtifactError, match=r"RTX .* has no ahead-of-time plugins; use TensorRT 10\.8"):
        aot.register(rtx)


def test_old_driver_raises(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "driver_version", lambda: (11, 4))
    with pytest.raises(ArtifactError, match=r"NVRTC is from CUDA \d+\.\d+, .* supports CUDA 11\.4 at most"):
        aot.register(variant)


def test_missing_nvrtc_raises(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[int, int]:
        raise BuildError("NVRTC is not installed: pip install cuda-bindings nvidia-cuda-nvrtc")

    monkeypatch.setattr(aot, "nvrtc_version", missing)
    with pytest.raises(ArtifactError, match=r"NVRTC is not installed: pip install .*--plugin library"):
        aot.register(variant)
