"""Prints what the kernels for GPUs take and how fast memory would let them be. Computed, not measured.

    python benchmarks/gpu_kernel.py

Registers are read from the machine code that NVRTC makes; occupancy follows from them and from the numbers
that NVIDIA's programming guide gives for each compute capability; times are bytes over the bandwidth in
NVIDIA's data sheets. Nothing here needs a GPU, and nothing here was run on one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robust_export.benchmark.networks import sparta_inputs
from robust_export.kernels.nvrtc import ACCESS_BYTES, TYPES, Kernel, compile_kernels, disassemble
from robust_export.nn.models import create_model

BLOCK = 128  # threads, of plugins/core/cuda_geometry.h
REGISTERS = 65536  # of a multiprocessor, all architectures
WARP = 32


@dataclass(frozen=True)
class Gpu:
    name: str
    architecture: str
    threads: int  # that a multiprocessor holds
    blocks: int  # likewise
    bandwidth: float  # GB/s of its memory


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
    *(Kernel(kind, k, ACCESS_BYTES // TYPES[kind][1]) for kind in ("float32", "float16") for k in (1, 3, 5, 7)),
    *(Kernel("float16", k, 0) for k in (1, 3)),
]


def occupancy(registers: int, gpu: Gpu) -> float:
    """Return the share of a multiprocessor's threads that blocks with so many registers a thread fill."""
    a_warp = math.ceil(registers * WARP / 256) * 256  # registers are given out by 256
    blocks = min(REGISTERS // (a_warp * BLOCK // WARP), gpu.threads // BLOCK, gpu.blocks)
    return blocks * BLOCK / gpu.threads


def kernels_table() -> str:
    """Return registers and occupancy of the kernels for aligned rows, by architecture."""
    found = {gpu: disassemble(compile_kernels(KERNELS, gpu.architecture)) for gpu in GPUS}
    lines = [
        "| kernel | bytes moved per element | " + " | ".join(gpu.architecture for gpu in GPUS) + " |",
        "|---|---:|" + "---:|" * len(GPUS),
    ]
    for kernel in KERNELS:
        cells = []
        for gpu in GPUS:
            registers = found[gpu][kernel.name].registers
            cells.append(f"{registers}, {occupancy(registers, gpu):.0%}")
        layout = "planes" if kernel.vector else "channels by 8"
        moved = 2 * TYPES[kernel.type][1]
        lines.append(f"| {kernel.type}, k = {kernel.k}, {layout} | {moved} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def times_table(batch: int = 32, size: int = 224) -> str:
    """Return how long memory takes for all planes of a ResNet-18, by GPU and by who does it."""
    network = create_model("r18_sparta", num_classes=1000, image_size=size)
    shapes = [shape for shape, _ in sparta_inputs(network, np.zeros((1, 3, size, size), np.float32))]
    elements = batch * sum(math.prod(shape) for shape in shapes)
    ways = {"the plugin": 2, "convolution, then one fused elementwise": 5, "every step by itself": 9}
    lines = [
        f"All {len(shapes)} planes of ResNet-18 at {size}x{size}, batch {batch}, float16: "
        f"{elements / 1e6:.0f} million elements.",
        "",
        "| | passes over memory | " + " | ".join(gpu.name for gpu in GPUS) + " |",
        "|---|---:|" + "---:|" * len(GPUS),
    ]
    for name, passes in ways.items():
        seconds = [passes * elements * 2 / (gpu.bandwidth * 1e9) for gpu in GPUS]
        lines.append(f"| {name} | {passes} | " + " | ".join(f"{1e3 * s:.2f} ms" for s in seconds) + " |")
    return "\n".join(lines)


def main() -> None:
    print("Registers of a thread, and the occupancy that they allow:\n")
    print(kernels_table())
    print(f"\n{times_table()}")


if __name__ == "__main__":
    main()
