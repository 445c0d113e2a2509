"""Deserialise an engine, and read its layers with TensorRT's inspector."""

from __future__ import annotations

import json
from typing import Any

from robust_export.errors import ArtifactError
from robust_export.runtimes.tensorrt.variants import Variant


def deserialise(variant: Variant, plan: bytes, file: str, *, version_compatible: bool = False) -> Any:
    """Return the trt.ICudaEngine of a plan.

    Args:
        plan: a serialised engine.
        file: its path, for the error message.
        version_compatible: the engine was built to run with later versions of TensorRT.

    Raises:
        ArtifactError: if TensorRT refuses the plan: it was built for another GPU, version or plugin.
    """
    trt = variant.trt
    variant.logger.take()
    runtime = trt.Runtime(variant.logger)
    if version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(
            f"{variant.title} cannot read {file}: {variant.logged_errors()}. An engine needs the version of "
            "TensorRT, the kind of GPU and the plugin that it was built for. Build it on this machine with "
            "`robust-export tensorrt`."
        )
    return engine


def engine_layers(variant: Variant, engine: Any) -> list[dict[str, Any]] | None:
    """Return the layers of an engine from TensorRT's inspector, None if it gives no JSON list."""
    text = engine.create_engine_inspector().get_engine_information(variant.trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    return [layer for layer in layers if isinstance(layer, dict)]


def count_plugins(layers: list[dict[str, Any]]) -> int:
    """Return the number of plugin layers. TensorRT fuses other layers, but never plugins."""
    return sum("plugin" in str(layer.get("LayerType", "")).lower() for layer in layers)
