"""Registers, occupancy and memory-bound time of the CUDA kernels: computed without a GPU, not measured.

Registers are read from the machine code that NVRTC makes. Occupancy follows from them and from the limits
that NVIDIA's programming guide gives for each compute capability. Times are bytes divided by the bandwidth in
NVIDIA's data sheets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import click
import numpy as np

from robust_export.benchmark.networks import sparta_inputs
from robust_export.kernels.nvrtc import ACCESS_BYTES, TYPES, Kernel, compile_kernels, disassemble
from robust_export.nn.models import create_model

BLOCK = 128  # threads per block, block_threads in plugins/core/cuda_geometry.h
REGISTERS = 65536  # per multiprocessor, on all architectures
WARP = 32


@dataclass(frozen=True)
class Gpu:
    name: str
    architecture: str
    threads: int  # per multiprocessor
    blocks: int  # per multiprocessor
    bandwidth: float  # of the memory, in GB/s


GPUS = (
    Gpu("T4", "sm_75", 1024, 16, 320),
    Gpu("A100 40 GB", "sm_80", 2048, 32, 1555),
    Gpu("A10", "sm_86", 1536, 16, 600),
    Gpu("RTX 4090", "sm_89", 1536, 24, 1008),
    Gpu("H100 SXM", "sm_90", 2048, 32, 3350),
    Gpu("B200", "sm_100", 2048, 32, 8000),
    Gpu("RTX 5090", "sm_120", 1536, 24, 1792),
)
KERNELS = [
    *(
        Kernel(kind, k, ACCESS_BYTES // TYPES[kind][1])
        for kind in ("float32", "float16")
        for k in (1, 3, 5, 7)
    ),
    *(Kernel("float16", k, 0) for k in (1, 3)),
]


def occupancy(registers: int, gpu: Gpu) -> float:
    """Return the resident threads of a multiprocessor as a share of its limit, by registers per thread."""
    per_warp = math.ceil(registers * WARP / 256) * 256  # registers are allocated in units of 256
    blocks = min(REGISTERS // (per_warp * BLOCK // WARP), gpu.threads // BLOCK, gpu.blocks)
    return blocks * BLOCK / gpu.threads


def kernels_table() -> str:
    """Return a table of registers and occupancy of the kernels for aligned rows, by architecture."""
    codes = {gpu: disassemble(compile_kernels(KERNELS, gpu.architecture)) for gpu in GPUS}
    lines = [
        "| kernel | bytes moved per element | " + " | ".join(gpu.architecture for gpu in GPUS) + " |",
        "|---|---:|" + "---:|" * len(GPUS),
    ]
    for kernel in KERNELS:
        cells = []
        for gpu in GPUS:
            registers = codes[gpu][kernel.name].registers
            cells.append(f"{registers}, {occupancy(registers, gpu):.0%}")
        layout = "NCHW" if kernel.vector else "channels in groups of 8"
        bytes_moved = 2 * TYPES[kernel.type][1]
        lines.append(
            f"| {kernel.type}, k = {kernel.k}, {layout} | {bytes_moved} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def times_table(batch: int = 32, size: int = 224) -> str:
    """Return a table of memory-bound times for all Sparta nodes of a ResNet-18, by GPU and implementation."""
    network = create_model("r18_sparta", num_classes=1000, image_size=size)
    shapes = [shape for shape, _ in sparta_inputs(network, np.zeros((1, 3, size, size), np.float32))]
    elements = batch * sum(math.prod(shape) for shape in shapes)
    passes_over_memory = {
        "the plugin": 2,
        "depthwise convolution, then one fused elementwise kernel": 5,
        "one kernel for each step": 9,
    }
    lines = [
        f"All {len(shapes)} feature maps of ResNet-18 at {size}x{size}, batch {batch}, float16: "
        f"{elements / 1e6:.0f} million elements.",
        "",
        "| computation | passes over memory | " + " | ".join(gpu.name for gpu in GPUS) + " |",
        "|---|---:|" + "---:|" * len(GPUS),
    ]
    for name, passes in passes_over_memory.items():
        seconds = [passes * elements * 2 / (gpu.bandwidth * 1e9) for gpu in GPUS]
        lines.append(f"| {name} | {passes} | " + " | ".join(f"{1e3 * s:.2f} ms" for s in seconds) + " |")
    return "\n".join(lines)


@click.command()
def main() -> None:
    """Print registers and occupancy of the CUDA kernels, and the time that memory bandwidth allows."""
    click.echo("Registers per thread, and the occupancy that they allow:\n")
    click.echo(kernels_table())
    click.echo(f"\n{times_table()}")


if __name__ == "__main__":
    main()
