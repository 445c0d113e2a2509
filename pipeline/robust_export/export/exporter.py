"""Writes a network as one self-contained ONNX file: Sparta nodes, and the function they stand for."""

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

OPSETS = range(18, 26)  # what torch 2.14's exporter writes or converts to
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
    """Write `module` to one ONNX file that stock ONNX Runtime runs.

    Input `pixels` float32 [N, in_chans, image_size, image_size], N free; output `logits`
    float32 [N, K]. Sparta activations become `ai.sparta::Sparta` nodes, with the function body in
    the file; a gate that several of them share is one pair of initialisers. Batch norm is folded.

    Args:
        metadata: JSON values to keep in the file's metadata_props as `robust_export.<key>`.

    Raises:
        InvalidValue: for an opset that cannot be written.
        UnsupportedModel: if torch cannot export the network, or not for every batch size.
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
    """Return what `export_onnx` writes, and raise what it raises."""
    if opset not in OPSETS:
        raise InvalidValue(f"opset is {opset}; expected {OPSETS.start} to {OPSETS.stop - 1}")
    if any(child.form != "relu" for child in sparta_modules(module).values()):
        raise UnsupportedModel(
            'this network\'s Sparta has the form "silu", x * sigmoid(w (*) x + b), which is for comparisons: '
            'the operator ai.sparta::Sparta and its kernels have the form "relu". Train with sparta.form = '
            '"relu" to export.'
        )
    twin = copy.deepcopy(module).to("cpu", torch.float32).eval()
    example = torch.rand(2, in_chans, image_size, image_size)
    model = _torch_export(twin, example, opset)
    _forget_where_it_was_made(model)
    nodes = add_sparta_function(model)
    if not nodes and sparta_modules(twin):
        raise UnsupportedModel("the exported graph has no Sparta node, though the network has some")
    check_file(model, opset)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=METADATA_PREFIX + key, value=json.dumps(value))
    return model


def _torch_export(twin: nn.Module, example: torch.Tensor, opset: int) -> onnx.ModelProto:
    try:
        with quiet():
            program = torch.onnx.export(
                twin, (example,), dynamo=True, opset_version=opset, verbose=False,
                input_names=["pixels"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            )  # fmt: skip
    except Exception as error:  # torch.export raises many kinds
        cause = error.__cause__ or error
        raise UnsupportedModel(
            f"torch cannot export this network to ONNX: {type(cause).__name__}: {reason(cause)}"
        ) from error
    assert program is not None  # with dynamo=True
    return program.model_proto


def check_file(model: onnx.ModelProto, opset: int) -> None:
    """Raise UnsupportedModel unless the file is valid, of the opset asked for, and N is free."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedModel(f"the exported file is not valid ONNX: {error}") from error
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != opset:
        raise UnsupportedModel(
            f"asked for opset {opset}, the exporter wrote {written}: this network has operators "
            f"that cannot be converted; use --opset {written}"
        )
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise UnsupportedModel(
                f"the network fixes its batch size: {value.name} has no free first dimension"
            )


def _forget_where_it_was_made(model: onnx.ModelProto) -> None:
    """Drop torch's stack traces: they hold paths of this machine and double the file's text."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's progress, advice and deprecation notes off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
