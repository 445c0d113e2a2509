"""ONNX Runtime's execution providers for GPUs, without fallback to the CPU.

Tested without a GPU: the refusals, and what a session is given. The CUDA provider also ran on an H100.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper

from robust_export.errors import ArtifactError
from robust_export.kernels.libraries import trt_library, why_no_trt_library
from robust_export.nn.onnx_operator import DOMAIN
from robust_export.runtimes.onnx_model import drop_function
from robust_export.runtimes.tensorrt.gpu_info import gpu_capability

TENSORRT_DOMAIN = "trt.plugins"  # the domain in which ONNX Runtime's TensorRT provider looks for plugins
RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
NO_FALLBACK = "session.disable_cpu_ep_fallback"


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: ONNX Runtime's name of it.
        install: how to install it.
        kernel: whether the custom-op library has a GPU kernel for it.
        plugin: whether TensorRT's plugin runs Sparta; otherwise ONNX Runtime inlines the function body.
    """

    name: str
    install: str
    kernel: bool = False
    plugin: bool = False


PROVIDERS = {
    "onnxruntime-cuda": Provider(
        "CUDAExecutionProvider", "On a machine with an NVIDIA GPU: pip install 'robust-export[gpu]'",
        kernel=True,
    ),
    "onnxruntime-tensorrt": Provider(
        "TensorrtExecutionProvider",
        "On a machine with an NVIDIA GPU: pip install 'robust-export[gpu,tensorrt]'",
        plugin=True,
    ),
    "onnxruntime-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        "On a machine with an RTX GPU, without onnxruntime-gpu: pip install onnxruntime "
        "onnxruntime-ep-nv-tensorrt-rtx",
    ),
}  # fmt: skip


def rewrite_for_provider(model: onnx.ModelProto, provider: Provider) -> onnx.ModelProto:
    """Return the model to load on a provider: with the plugin, Sparta nodes are in TensorRT's domain.

    Raises:
        ArtifactError: if a plugin is needed and its library is not built.
    """
    if not provider.plugin:
        return model
    _plugin_library()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    drop_function(copy)
    for node in copy.graph.node:
        if node.domain == DOMAIN:
            node.domain = TENSORRT_DOMAIN
            attributes = {"plugin_version": "1", "plugin_namespace": ""}
            node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    copy.opset_import.append(helper.make_opsetid(TENSORRT_DOMAIN, 1))
    return copy


def create_session(content: bytes, options: ort.SessionOptions, provider: Provider, *, file: str) -> Any:
    """Return a session that runs every node on the provider.

    Args:
        content: the serialised model.
        file: its path, for error messages.

    Raises:
        ArtifactError: if the provider is not installed or has no GPU.
        Exception: ONNX Runtime's own, if it refuses the model or would run a node on the CPU.
    """
    _check_gpu(provider)
    options.add_session_config_entry(NO_FALLBACK, "1")
    if provider is PROVIDERS["onnxruntime-rtx"]:
        _add_rtx_devices(options, provider)
        session = ort.InferenceSession(content, options, enable_fallback=False)
    else:
        if provider.name not in ort.get_available_providers():
            raise _unavailable(provider, f"ONNX Runtime has {', '.join(ort.get_available_providers())}")
        settings = {"trt_extra_plugin_lib_paths": _plugin_library()} if provider.plugin else {}
        session = ort.InferenceSession(
            content, options, providers=[(provider.name, settings)], enable_fallback=False
        )
    used = session.get_providers()
    if provider.name not in used:
        raise _unavailable(provider, f"ONNX Runtime chose {', '.join(used)} for {file}")
    return session


def _check_gpu(provider: Provider) -> None:
    """Raise ArtifactError if CUDA finds no GPU; without cuda-bindings, leave the check to ONNX Runtime."""
    try:
        has_gpu = gpu_capability() is not None
    except ArtifactError:
        return
    if not has_gpu:
        raise _unavailable(provider, "CUDA finds no GPU")


def _add_rtx_devices(options: ort.SessionOptions, provider: Provider) -> None:
    """Register the provider's package, once per process, and add its devices to the session."""
    try:
        package = importlib.import_module(RTX_PACKAGE)
        name = package.get_ep_name()
        if name not in {device.ep_name for device in ort.get_ep_devices()}:
            ort.register_execution_provider_library(name, package.get_library_path())
    except (ImportError, AttributeError) as error:
        raise _unavailable(provider, str(error)) from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise _unavailable(provider, "it sees no RTX GPU")
    options.add_provider_for_devices(devices, {})


def _plugin_library() -> str:
    library = trt_library()
    if library is None:
        raise ArtifactError(why_no_trt_library())
    return str(library)


def _unavailable(provider: Provider, problem: str) -> ArtifactError:
    return ArtifactError(
        f"{provider.name} cannot be used: {problem}. There is no fallback to the CPU. {provider.install}"
    )
