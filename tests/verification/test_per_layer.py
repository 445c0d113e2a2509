"""Drift says where in the network an artifact starts to differ."""

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
from robust_export.verification.per_layer import drift, source_activations

PIXELS = np.random.default_rng(0).random((4, 3, 8, 8), np.float32)


@pytest.mark.parametrize("runtime", ["onnxruntime", "reference"])
def test_it_starts_where_the_fault_is(trained: Path, tmp_path: Path, runtime: str) -> None:
    bundle = Bundle.open(trained)
    model = onnx.load(bundle.file("model.onnx"))
    nodes = sparta_nodes(model)
    broken = 5
    weight = next(t for t in model.graph.initializer if t.name == nodes[broken].input[1])
    own = numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.1), "own")
    model.graph.initializer.append(own)  # the gate is shared: this site alone gets another
    nodes[broken].input[1] = "own"
    onnx.save(model, tmp_path / "bad.onnx")
    source = PyTorchClassifier(load(bundle))
    sites = drift(source, open_file(tmp_path / "bad.onnx", runtime), PIXELS)
    assert len(sites) == len(nodes) == 11
    assert len({site.site for site in sites}) == 11
    assert all(site.drift < 1e-5 for site in sites[:broken])
    assert sites[broken].drift > 1e-3


def test_it_follows_the_fused_kernel(trained: Path, library: Path) -> None:
    bundle = Bundle.open(trained)
    classifier = OnnxRuntimeClassifier(bundle.file("model.onnx"))
    assert classifier.kernel_file == library
    sites = drift(PyTorchClassifier(load(bundle)), classifier, PIXELS)
    assert len(sites) == 11
    assert all(0 <= site.drift < 1e-5 for site in sites)


def test_a_network_without_sparta_is_followed_by_its_relus(tmp_path: Path) -> None:
    network = create_model("resnet10t_relu", 10, 8, channels=[8, 8, 8, 8], stem_width=8)
    file = export_onnx(network, tmp_path / "relu.onnx", 8)
    sites = drift(PyTorchClassifier(network), OnnxRuntimeClassifier(file), PIXELS)
    assert len(sites) == 11
    assert all(site.drift < 1e-5 for site in sites)


def test_a_runtime_that_shows_nothing_has_no_drift(trained: Path) -> None:
    bundle = Bundle.open(trained)
    classifier = open_file(bundle.file("model.onnx"), "openvino")
    assert drift(PyTorchClassifier(load(bundle)), classifier, PIXELS) == []


def test_activations_are_those_of_the_network(trained: Path) -> None:
    """The last one, averaged and put through the network's own classifier, gives the logits."""
    network = load(trained)
    _, planes = source_activations(network, torch.from_numpy(PIXELS))
    with torch.inference_mode():
        logits = network.get_submodule("backbone.fc")(torch.from_numpy(planes[-1]).mean(dim=(2, 3)))
        torch.testing.assert_close(logits, network(torch.from_numpy(PIXELS)))
