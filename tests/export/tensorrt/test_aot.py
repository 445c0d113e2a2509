"""The plugins compiled ahead of time: what TensorRT is told, run on a CPU as TensorRT runs it on a GPU.

The source that NVRTC makes PTX of is compiled by g++ too, with plugins/tests/cuda_on_cpu.h, and started with
the very grid, block and scalars that TensorRT is given.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from robust_export import kernels
from robust_export.errors import ArtifactError, BuildError
from robust_export.export.tensorrt import aot as quick
from robust_export.kernels import nvrtc
from robust_export.nn.sparta import sparta
from robust_export.runtimes.tensorrt.variants import Variant
from tests.export.tensorrt.aot_double import DataType, Plugins, TensorDesc, TensorFormat
from tests.kernels.compiling import kernels_on_cpu

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
def flavor(monkeypatch: pytest.MonkeyPatch) -> Variant:
    """A TensorRT whose plugin module is the double; a GPU of compute capability 8.9."""
    trt = SimpleNamespace(
        __name__="tensorrt", __version__="11.1", ILogger=SimpleNamespace(Severity=SimpleNamespace(ERROR=1))
    )
    plugins = Plugins()
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugins)
    monkeypatch.setattr(quick, "_registered", set())
    monkeypatch.setattr(quick, "gpu", lambda: (8, 9))
    monkeypatch.setattr(quick, "driver_version", lambda: (99, 0))
    quick._ptx.cache_clear()
    try:
        quick.check_compiler()
    except ArtifactError as error:
        pytest.skip(str(error))
    found = Variant("tensorrt", trt, Log())
    quick.register(found)
    trt.plugins = plugins.registered
    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Every kernel's source, compiled for the CPU, each started by run_<its name>."""
    folder = tmp_path_factory.mktemp("quick")
    every = nvrtc.every_kernel()
    (folder / "all.cpp").write_text(
        '#include "cuda_on_cpu.h"\n' + nvrtc.program(every) + "".join(map(starter, every))
    )
    plugins = kernels.sources()
    includes = [f"-I{plugins / 'core'}", f"-I{plugins / 'tests'}"]
    command = kernels_on_cpu("-shared", "-fPIC", "-w", *includes)
    files = [str(folder / "all.cpp"), "-o", str(folder / "all.so")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return ctypes.CDLL(str(folder / "all.so"))


def starter(kernel: nvrtc.Kernel) -> str:
    """Return a function that starts a kernel with TensorRT's order of arguments: inputs, scalars, outputs."""
    cpp, inputs = nvrtc.TYPES[kernel.type][0], 4 if kernel.add else 3
    given = ", ".join(f"static_cast<{cpp}*>(t[{i}])" for i in range(inputs))
    return (
        f'extern "C" void run_{kernel.name}(void** t, const int* s, unsigned blocks, unsigned threads) {{\n'
        "  std::mt19937 random(1);\n"
        "  cuda_on_cpu::launch(blocks, threads, cuda_on_cpu::Order::random, random, [&] {\n"
        f"    {kernel.name}({given}, s[0], s[1], s[2], s[3], static_cast<{cpp}*>(t[{inputs}]));\n  }});\n}}\n"
    )


def run(
    flavor: Variant, library: ctypes.CDLL, dtype: DataType, layout: TensorFormat, k: int, add: bool,
    shape: tuple[int, int, int, int], free_width: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, str]:  # fmt: skip
    """Return Sparta as the plugin computes it, as float64 has it, and the kernel's name."""
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
    plugin = flavor.trt.plugins["sparta::SpartaAdd" if add else "sparta::Sparta"]
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
        tensors = [to_channels8(t) for t in tensors]
    y = torch.full_like(tensors[0], float("nan"))
    every = [aligned(t) for t in (*tensors, weight, bias, y)]
    pointers = (ctypes.c_void_p * len(every))(*(t.data_ptr() for t in every))
    getattr(library, f"run_{name}")(pointers, given, launch.grid_x.at(sizes), launch.block_x)
    result = every[-1]
    if layout is TensorFormat.HWC8:
        assert not result[..., c:].any()
        result = result[..., :c].permute(0, 3, 1, 2)
    return result.double(), expected, name


def to_channels8(planes: torch.Tensor) -> torch.Tensor:
    """Return [N, H, W, C rounded up to eights], with what must not be read as NaN."""
    n, c, h, w = planes.shape
    result = torch.zeros((n, h, w, -(-c // 8) * 8), dtype=planes.dtype)
    result[..., :c] = planes.permute(0, 2, 3, 1)
    return result


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy at an address that 256 divides, as all of TensorRT's are."""
    room = torch.empty(tensor.numel() * tensor.element_size() + 256, dtype=torch.uint8)
    start = -room.data_ptr() % 256
    copy = room[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
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
def test_planes(flavor: Variant, library: ctypes.CDLL, dtype: DataType, add: bool) -> None:
    used = set()
    for k in (1, 3, 5, 7):
        for shape in SHAPES:
            for free in (False, True):
                found, expected, name = run(
                    flavor, library, dtype, TensorFormat.LINEAR, k, add, shape, free_width=free
                )
                used.add(name)
                bound = TYPES[dtype][1] * max(1, expected.abs().max().item())
                torch.testing.assert_close(found, expected, atol=bound, rtol=0)
                assert free is False or "planes1" in name
    size = nvrtc.TYPES[quick.DTYPES[dtype.name]][1]
    assert {int(re.findall(r"planes(\d)", name)[0]) for name in used} == {1, 4 // size, 16 // size}


@pytest.mark.parametrize("dtype", [DataType.HALF, DataType.BF16], ids=lambda d: d.name)
@pytest.mark.parametrize("add", [False, True], ids=["plain", "add"])
@pytest.mark.parametrize("k", [1, 3])
def test_channels_in_eights(
    flavor: Variant, library: ctypes.CDLL, dtype: DataType, add: bool, k: int
) -> None:
    for shape in SHAPES:
        found, expected, name = run(flavor, library, dtype, TensorFormat.HWC8, k, add, shape)
        assert "channels8" in name
        bound = TYPES[dtype][1] * max(1, expected.abs().max().item())
        torch.testing.assert_close(found, expected, atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", DataType, ids=lambda d: d.name)
@pytest.mark.parametrize(("k", "add"), [(1, False), (3, True), (5, False), (7, True)])
def test_which_formats(flavor: Variant, dtype: DataType, k: int, add: bool) -> None:
    plane, weight, bias = (TensorDesc(s, dtype) for s in ((-1, 8, 4, 4), (8, 1, k, k), (8,)))
    plugin = flavor.trt.plugins["sparta::SpartaAdd" if add else "sparta::Sparta"]
    inputs = [*[plane] * (1 + add), weight, bias]
    assert plugin["register"](*inputs) == plane
    found = plugin["autotune"](*inputs, (plane,))
    word = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16"}[dtype.name]
    layouts = [["LINEAR"] * (len(inputs) + 1)]
    if dtype is not DataType.FLOAT and k <= 3:
        layouts.append([*["HWC8"] * (1 + add), "LINEAR", "LINEAR", "HWC8"])
    assert [(c.io_types, c.layouts) for c in found] == [
        (", ".join([word] * (len(inputs) + 1)), ", ".join(layout)) for layout in layouts
    ]


def test_geometry_is_that_of_the_headers() -> None:
    header = (kernels.sources() / "core" / "cuda_geometry.h").read_text()
    for name, value in (("block_threads", quick.BLOCK), ("strip", quick.STRIP)):
        assert f"constexpr int {name} = {value};" in header


def test_an_error_in_a_callback_is_logged_for_our_own(flavor: Variant) -> None:
    log: Any = flavor.logger
    x, weight, bias = (TensorDesc(s, DataType.FLOAT) for s in ((-1, 8, 4, 4), (8, 1, 9, 9), (8,)))
    with pytest.raises(ArtifactError):
        flavor.trt.plugins["sparta::Sparta"]["aot_impl"](x, weight, bias, (x,), 0)
    assert log.lines == ["Sparta's plugin: Sparta's weight is of 9 columns; expected 1, 3, 5 or 7"]


def test_registered_once(flavor: Variant) -> None:
    quick.register(flavor)  # the double refuses a second time


# --- what cannot be ---


def test_rtx_has_no_plugins_ahead_of_time(rtx: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "check_compiler", lambda: None)
    with pytest.raises(ArtifactError, match=r"TensorRT for RTX .* ahead of time; TensorRT 10\.8"):
        quick.register(rtx)


def test_an_old_driver(flavor: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "driver_version", lambda: (11, 4))
    with pytest.raises(ArtifactError, match=r"NVRTC is of CUDA \d+\.\d+ .* takes CUDA 11\.4 at most"):
        quick.register(flavor)


def test_no_compiler(flavor: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[int, int]:
        raise BuildError("NVRTC is not installed: pip install cuda-bindings nvidia-cuda-nvrtc")

    monkeypatch.setattr(quick, "nvrtc_version", missing)
    with pytest.raises(ArtifactError, match=r"NVRTC is not installed: pip install .*--plugin library"):
        quick.register(flavor)
