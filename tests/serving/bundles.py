"""A bundle of a linear network, made without torch, and its logits in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from robust_export.bundle import Bundle

Array = npt.NDArray[np.float32]

SHAPE, LABELS = (3, 8, 8), ["ant", "bee", "cat", "dog", "ear"]


def weights(seed: int = 0) -> Array:
    """Return the weights, [192, 5]."""
    return np.random.default_rng(seed).standard_normal((192, 5)).astype(np.float32)


def expected(pixels: Array, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return the logits, computed in float64."""
    return pixels.reshape(len(pixels), -1).astype(np.float64) @ weights(seed)


def images(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((n, *SHAPE), dtype=np.float32)


def linear_bundle(folder: Path, seed: int = 0, matmuls: int = 0) -> Path:
    """Write a bundle named after its folder.

    Args:
        matmuls: products with 1000 x 1000 matrices of zeros that run before the logits are returned.
    """
    folder.mkdir(parents=True)
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    constants = [numpy_helper.from_array(weights(seed), "w")]
    last = "y"
    if matmuls:
        constants.append(numpy_helper.from_array(np.zeros((5, 1000), np.float32), "up"))
        constants.append(numpy_helper.from_array(np.zeros((1000, 1000), np.float32), "square"))
        constants.append(numpy_helper.from_array(np.zeros((1000, 5), np.float32), "down"))
        nodes.append(helper.make_node("MatMul", ["y", "up"], ["z0"]))
        for i in range(matmuls):
            nodes.append(helper.make_node("MatMul", [f"z{i}", "square"], [f"z{i + 1}"]))
        nodes.append(helper.make_node("MatMul", [f"z{matmuls}", "down"], ["zero"]))
        nodes.append(helper.make_node("Add", ["y", "zero"], ["sum"]))
        last = "sum"
    nodes.append(helper.make_node("Identity", [last], ["logits"]))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", *SHAPE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)])
    graph = helper.make_graph(nodes, "linear", [pixels], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    manifest = {
        "name": folder.name, "created": "2026-01-01T00:00:00Z", "model": "linear", "labels": LABELS,
        "input": {"name": "pixels", "dtype": "float32", "shape": ["N", *SHAPE]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["N", len(LABELS)]},
        "preprocessing": {}, "threat": {"norm": "Linf", "eps": 0.1},
        "provenance": {},
    }  # fmt: skip
    return Bundle.create(folder, manifest, {"model.onnx": "onnx"}).path
