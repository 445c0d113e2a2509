"""Export a network to a self-contained ONNX file with Sparta nodes and their function body."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from robust_export.errors import InvalidValue, UnsupportedModel, reason
from robust_export.export.function_body import add_sparta_function
from robust_export.nn.sparta import sparta_modules
from robust_export.utils.files import write_atomically

OPSETS = range(18, 26)  # that torch's exporter writes or converts to
DEFAULT_OPSET = 20  # ONNX Runtime 1.17 and later, TensorRT 10 and later
METADATA_PREFIX = "robust_export."


def export_onnx(
    module: nn.Module,
    path: str | Path,
    image_size: int = 32,
    in_chans: int = 3,
    *,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write `module` to one ONNX file that stock ONNX Runtime runs, and return the path.

    Input `pixels` float32 [N, in_chans, image_size, image_size] with N free; output `logits` float32
    [N, K]. Sparta activations become `ai.sparta::Sparta` nodes, and the file holds the function body.
    Activations that share (w, b) share the initialisers. Batch norm is folded.

    Args:
        metadata: JSON values, written to the file's metadata_props as `robust_export.<key>`.

    Raises:
        InvalidValue: for an opset that cannot be written.
        UnsupportedModel: if torch cannot export the network for a free batch size.
    """
    model = to_onnx(module, image_size, in_chans, opset=opset, metadata=metadata)
    return write_atomically(path, model.SerializeToString())


def to_onnx(
    module: nn.Module,
    image_size: int = 32,
    in_chans: int = 3,
    *,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Return the model that `export_onnx` writes; the arguments and errors are the same."""
    if opset not in OPSETS:
        raise InvalidValue(f"opset is {opset}; expected {OPSETS.start} to {OPSETS.stop - 1}")
    if any(child.form != "relu" for child in sparta_modules(module).values()):
        raise UnsupportedModel(
            'this network\'s Sparta has the form "silu", x * sigmoid(w (*) x + b), which serves comparisons; '
            'the operator ai.sparta::Sparta and its kernels have the form "relu". Train with sparta.form = '
            '"relu" to export.'
        )
    network = copy.deepcopy(module).to("cpu", torch.float32).eval()
    example = torch.rand(2, in_chans, image_size, image_size)
    model = _torch_export(network, example, opset)
    _strip_metadata(model)
    nodes = add_sparta_function(model)
    if not nodes and sparta_modules(network):
        raise UnsupportedModel(
            "the network has Sparta activations, but the exported graph has no Sparta node"
        )
    check_exported(model, opset)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=METADATA_PREFIX + key, value=json.dumps(value))
    return model


def _torch_export(network: nn.Module, example: torch.Tensor, opset: int) -> onnx.ModelProto:
    try:
        with suppress_output():
            program = torch.onnx.export(
                network, (example,), dynamo=True, opset_version=opset, verbose=False,
                input_names=["pixels"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            )  # fmt: skip
    except Exception as error:  # torch.export raises many types
        cause = error.__cause__ or error
        raise UnsupportedModel(
            f"torch cannot export this network to ONNX: {type(cause).__name__}: {reason(cause)}"
        ) from error
    assert program is not None  # with dynamo=True
    return program.model_proto


def check_exported(model: onnx.ModelProto, opset: int) -> None:
    """Raise UnsupportedModel unless the model is valid, has the requested opset, and N is free."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedModel(f"the exported model is not valid ONNX: {error}") from error
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != opset:
        raise UnsupportedModel(
            f"opset {opset} was requested, but the exporter wrote {written}: this network has operators "
            f"that it cannot convert; use --opset {written}"
        )
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise UnsupportedModel(
                f"the network has a fixed batch size: {value.name} has no free first dimension"
            )


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Remove torch's stack traces, which hold paths of this machine and double the graph's size."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress the standard output, warnings and log records below ERROR of the code inside."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
