"""ONNX Runtime's execution providers for GPUs. None of them falls back to the CPU without a word.

Written without a GPU: what each refuses was tried, what it computes was not run on hardware.
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
from robust_export.nn.operator import DOMAIN
from robust_export.runtimes.onnx_model import drop_function
from robust_export.runtimes.tensorrt.gpu_info import gpu

TENSORRT_DOMAIN = "trt.plugins"  # where ONNX Runtime's TensorRT provider looks for plugins
RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
NO_FALLBACK = "session.disable_cpu_ep_fallback"


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: as ONNX Runtime calls it.
        how: to install it.
        kernel: whether the custom op library's kernel for GPUs serves it.
        plugin: whether TensorRT's plugin runs Sparta; otherwise ONNX Runtime writes the function body in.
    """

    name: str
    how: str
    kernel: bool = False
    plugin: bool = False


PROVIDERS = {
    "onnxruntime-cuda": Provider(
        "CUDAExecutionProvider", "pip install 'robust-export[gpu]', where an NVIDIA GPU is", kernel=True
    ),
    "onnxruntime-tensorrt": Provider(
        "TensorrtExecutionProvider", "pip install 'robust-export[gpu,tensorrt]', where an NVIDIA GPU is",
        plugin=True,
    ),
    "onnxruntime-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        "pip install onnxruntime onnxruntime-ep-nv-tensorrt-rtx, without onnxruntime-gpu, where an RTX "
        "GPU is",
    ),
}  # fmt: skip


def prepare(model: onnx.ModelProto, provider: Provider) -> onnx.ModelProto:
    """Return the model that the provider is given: for the plugin, its nodes in TensorRT's domain.

    Raises:
        ArtifactError: if a plugin is needed and there is no library.
    """
    if not provider.plugin:
        return model
    _library()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    drop_function(copy)
    for node in copy.graph.node:
        if node.domain == DOMAIN:
            node.domain = TENSORRT_DOMAIN
            given = {"plugin_version": "1", "plugin_namespace": ""}
            node.attribute.extend(helper.make_attribute(key, value) for key, value in given.items())
    copy.opset_import.append(helper.make_opsetid(TENSORRT_DOMAIN, 1))
    return copy


def start(content: bytes, options: ort.SessionOptions, provider: Provider, what: str) -> Any:
    """Return a session that runs wholly on the provider.

    Args:
        what: the file, as an error calls it.

    Raises:
        ArtifactError: if the provider is not installed or has no GPU, or some node would run on the CPU.
        Exception: ONNX Runtime's own, if it refuses the model.
    """
    _check_gpu(provider)
    options.add_session_config_entry(NO_FALLBACK, "1")
    if provider is PROVIDERS["onnxruntime-rtx"]:
        _add_rtx(options, provider)
        session = ort.InferenceSession(content, options, enable_fallback=False)
    else:
        if provider.name not in ort.get_available_providers():
            raise _missing(provider, f"ONNX Runtime has {', '.join(ort.get_available_providers())}")
        given = {"trt_extra_plugin_lib_paths": _library()} if provider.plugin else {}
        session = ort.InferenceSession(
            content, options, providers=[(provider.name, given)], enable_fallback=False
        )
    used = session.get_providers()
    if provider.name not in used:
        raise _missing(provider, f"ONNX Runtime chose {', '.join(used)} for {what}")
    return session


def _check_gpu(provider: Provider) -> None:
    """Raise ArtifactError if there is no GPU; that nobody can tell is no error here."""
    try:
        found = gpu() is not None
    except ArtifactError:
        found = True
    if not found:
        raise _missing(provider, "CUDA sees no GPU")


def _add_rtx(options: ort.SessionOptions, provider: Provider) -> None:
    """Register the provider's own package, once a process, and give the session its devices."""
    try:
        package = importlib.import_module(RTX_PACKAGE)
        name = package.get_ep_name()
        if name not in {device.ep_name for device in ort.get_ep_devices()}:
            ort.register_execution_provider_library(name, package.get_library_path())
    except (ImportError, AttributeError) as error:
        raise _missing(provider, str(error)) from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise _missing(provider, "it sees no RTX GPU")
    options.add_provider_for_devices(devices, {})


def _library() -> str:
    library = trt_library()
    if library is None:
        raise ArtifactError(why_no_trt_library())
    return str(library)


def _missing(provider: Provider, found: str) -> ArtifactError:
    return ArtifactError(
        f"{provider.name} cannot be used here: {found}; nothing runs on the CPU in its place. {provider.how}"
    )
