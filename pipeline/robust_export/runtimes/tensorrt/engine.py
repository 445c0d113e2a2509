"""A plan as an engine on the GPU that is there, and what its inspector says."""

from __future__ import annotations

import json
from typing import Any

from robust_export.errors import ArtifactError
from robust_export.runtimes.tensorrt.variants import Variant


def deserialise(flavor: Variant, plan: bytes, what: str, *, version_compatible: bool = False) -> Any:
    """Return the trt.ICudaEngine of a plan.

    Args:
        what: the plan, as an error calls it.

    Raises:
        ArtifactError: if TensorRT does not take it: it was built for another GPU or version, or by another
            plugin.
    """
    trt = flavor.trt
    flavor.logger.take()
    runtime = trt.Runtime(flavor.logger)
    if version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(
            f"{flavor.title} cannot read {what}: {flavor.problem()}. An engine runs with the version of "
            "TensorRT, on the kind of GPU and with the plugin that it was built for: build it here with "
            "`robust-export tensorrt`"
        )
    return engine


def engine_layers(flavor: Variant, engine: Any) -> list[dict[str, Any]] | None:
    """Return the layers of an engine as TensorRT's inspector tells them; None if it does not."""
    text = engine.create_engine_inspector().get_engine_information(flavor.trt.LayerInformationFormat.JSON)
    try:
        found = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    return [layer for layer in found if isinstance(layer, dict)]


def count_plugins(found: list[dict[str, Any]]) -> int:
    """Return how many layers are a plugin's. Fusion joins others, but never these."""
    return sum("plugin" in str(layer.get("LayerType", "")).lower() for layer in found)
