"""Stand-ins for what the kernels are built from and with: sources, TensorRT's headers, nvcc, ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result

from robust_export.cli import cli

CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(stand_in LANGUAGES CXX)
if(SPARTA_CUDA AND EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/no-cuda)
  message(FATAL_ERROR "nvcc dislikes this host compiler")
endif()
add_library(sparta_ort MODULE ort.cpp)
target_compile_definitions(sparta_ort PRIVATE CUDA=$<BOOL:${SPARTA_CUDA}>)
if(SPARTA_TRT_INCLUDE)
  add_library(sparta_trt MODULE trt.cpp)
  string(REPLACE ";" " " gpus "${CMAKE_CUDA_ARCHITECTURES}")
  target_compile_definitions(sparta_trt PRIVATE "GPUS=\\"${gpus}\\"")
endif()
"""
ORT = """
extern "C" void* RegisterCustomOps(void*, const void*) { return nullptr; }
extern "C" const char* sparta_instructions() { return "stand-in"; }
extern "C" int sparta_has_cuda() { return CUDA; }
"""
TRT = 'extern "C" const char* sparta_trt_info() { return "GPUs " GPUS; }\n'

VERSIONS = {
    "10.0": "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 0 //!< minor\n",
    "8.6": "#define NV_TENSORRT_MAJOR 8 //!< major\n#define NV_TENSORRT_MINOR 6 //!< minor\n",
    "11.1": "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n"
    "#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE //!< minor\n",
}


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def headers(folder: Path, version: str) -> Path:
    """Write headers that have nothing but a version."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("NvInfer.h", "NvInferRuntime.h"):
        (folder / name).touch()
    (folder / "NvInferVersion.h").write_text(VERSIONS[version])
    return folder


def program(path: Path, *lines: str) -> Path:
    """Write a program that prints lines, whatever it is asked."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + "\n".join(f"echo '{line}'" for line in lines) + "\n")
    path.chmod(0o755)
    return path


def providers(monkeypatch: pytest.MonkeyPatch, *, cuda: bool) -> None:
    names = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
