"""Stand-ins for the inputs of a build: sources, TensorRT's headers, nvcc, ONNX Runtime's providers."""

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
  message(FATAL_ERROR "nvcc does not support this host compiler")
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

VERSION_HEADERS = {
    "10.0": "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 0 //!< minor\n",
    "8.6": "#define NV_TENSORRT_MAJOR 8 //!< major\n#define NV_TENSORRT_MINOR 6 //!< minor\n",
    "11.1": "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n"
    "#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE //!< minor\n",
}


def run(*args: str) -> Result:
    """Run a command line of robust-export."""
    return CliRunner().invoke(cli, args)


def write_trt_headers(folder: Path, version: str) -> Path:
    """Write TensorRT headers without contents but a version; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("NvInfer.h", "NvInferRuntime.h"):
        (folder / name).touch()
    (folder / "NvInferVersion.h").write_text(VERSION_HEADERS[version])
    return folder


def write_program(path: Path, *lines: str) -> Path:
    """Write a program that prints lines, whatever its arguments."""
    return _write_script(path, [f"echo '{line}'" for line in lines])


def write_failing_program(path: Path, message: str) -> Path:
    """Write a program that prints a message to standard error and fails."""
    return _write_script(path, [f"echo '{message}' >&2", "exit 1"])


def _write_script(path: Path, commands: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *commands, ""]))
    path.chmod(0o755)
    return path


def set_providers(monkeypatch: pytest.MonkeyPatch, *, cuda: bool) -> None:
    """Set the execution providers that ONNX Runtime reports."""
    names = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
