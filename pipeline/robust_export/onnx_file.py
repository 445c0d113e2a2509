"""An ONNX file as it is read, and Sparta in it. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from robust_export.errors import ArtifactError
from robust_export.op import DOMAIN, OPERATOR


def read_model(path: Path) -> onnx.ModelProto:
    """Return the file's model.

    Raises:
        ArtifactError: if it is no ONNX file, or one without a node.
    """
    try:
        model = onnx.load(path)
    except (OSError, DecodeError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read as an ONNX file: {error}. Make it with `robust-export onnx`."
        ) from error
    if not model.graph.node:
        raise ArtifactError(
            f"{path} is not an ONNX file, or an empty one. Make it with `robust-export onnx`."
        )
    return model


def sparta_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return a model's Sparta nodes, in graph order."""
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def has_function(model: onnx.ModelProto) -> bool:
    """Return whether the model holds Sparta's function body."""
    return any((f.domain, f.name) == (DOMAIN, OPERATOR) for f in model.functions)


def drop_function(model: onnx.ModelProto) -> None:
    """Leave out Sparta's function body, so that only a kernel or a plugin can run its nodes."""
    kept = [f for f in model.functions if (f.domain, f.name) != (DOMAIN, OPERATOR)]
    del model.functions[:]
    model.functions.extend(kept)
