"""Per-layer error shows at which activation an artifact starts to differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from robust_export.bundle import Bundle
from robust_export.export.exporter import export_onnx
from robust_export.nn.load import load
from robust_export.nn.models import create_model
from robust_export.runtimes.onnx_model import sparta_nodes
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.runtimes.registry import open_file
from robust_export.verification.per_layer import per_layer_errors, reference_activations

PIXELS = np.random.default_rng(0).random((4, 3, 8, 8), np.float32)


@pytest.mark.parametrize("runtime", ["onnxruntime", "reference"])
def test_error_starts_at_the_fault(trained: Path, tmp_path: Path, runtime: str) -> None:
    bundle = Bundle.open(trained)
    model = onnx.load(bundle.file("model.onnx"))
    nodes = sparta_nodes(model)
    broken = 5
    weight = next(t for t in model.graph.initializer if t.name == nodes[broken].input[1])
    own = numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.1), "own")
    model.graph.initializer.append(own)  # sites share weights: only this one gets others
    nodes[broken].input[1] = "own"
    onnx.save(model, tmp_path / "bad.onnx")
    reference = PyTorchClassifier(load(bundle))
    layers = per_layer_errors(reference, open_file(tmp_path / "bad.onnx", runtime), PIXELS)
    assert len(layers) == len(nodes) == 11
    assert len({layer.site for layer in layers}) == 11
    assert all(layer.error < 1e-5 for layer in layers[:broken])
    assert layers[broken].error > 1e-3


def test_fused_kernel(trained: Path, library: Path) -> None:
    bundle = Bundle.open(trained)
    classifier = OnnxRuntimeClassifier(bundle.file("model.onnx"))
    assert classifier.kernel_file == library
    layers = per_layer_errors(PyTorchClassifier(load(bundle)), classifier, PIXELS)
    assert len(layers) == 11
    assert all(0 <= layer.error < 1e-5 for layer in layers)


def test_relu_network(tmp_path: Path) -> None:
    network = create_model("resnet10t_relu", 10, 8, channels=[8, 8, 8, 8], stem_width=8)
    file = export_onnx(network, tmp_path / "relu.onnx", 8)
    layers = per_layer_errors(PyTorchClassifier(network), OnnxRuntimeClassifier(file), PIXELS)
    assert len(layers) == 11
    assert all(layer.error < 1e-5 for layer in layers)


def test_runtime_without_activations(trained: Path) -> None:
    bundle = Bundle.open(trained)
    classifier = open_file(bundle.file("model.onnx"), "openvino")
    assert per_layer_errors(PyTorchClassifier(load(bundle)), classifier, PIXELS) == []


def test_reference_activations(trained: Path) -> None:
    """The last one, averaged and passed to the network's classifier, gives the logits."""
    network = load(trained)
    _, activations = reference_activations(network, torch.from_numpy(PIXELS))
    with torch.inference_mode():
        logits = network.get_submodule("backbone.fc")(torch.from_numpy(activations[-1]).mean(dim=(2, 3)))
        torch.testing.assert_close(logits, network(torch.from_numpy(PIXELS)))
