"""OnnxRuntimeClassifier on the CPU: logits, metadata, and invalid files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError
from robust_export.nn.load import load
from robust_export.runtimes.onnx_reference import ReferenceClassifier
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier
from tests.export.networks import parse_graph

FLATTEN = "flatten (float[N, 3, 4, 4] pixels) => (float[N, 48] logits) {logits = Flatten (pixels)}"


def pixels(n: int) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.float32]]:
    return np.random.default_rng(n).random((n, 3, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("n", [1, 5, 8, 13])
def test_agrees_with_pytorch(trained: Path, n: int) -> None:
    network = load(trained)
    classifier = OnnxRuntimeClassifier(trained / "model.onnx", batch_size=5)
    with torch.no_grad():
        expected = network.double()(torch.from_numpy(pixels(n)).double()).numpy()
    found = classifier(pixels(n))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    ours = PyTorchClassifier(network.float(), batch_size=5)(pixels(n))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_metadata_is_read(trained: Path) -> None:
    classifier = OnnxRuntimeClassifier(trained / "model.onnx")
    assert classifier.labels == Bundle.open(trained).labels
    assert classifier.input_shape == (3, 8, 8)
    assert classifier.classes == 10
    assert classifier.sparta_nodes == 11


def test_no_fused_nodes_without_kernel(trained: Path, tmp_path: Path) -> None:
    """Without a kernel library ONNX Runtime inlines the function bodies."""
    assert OnnxRuntimeClassifier(trained / "model.onnx").fused_nodes() == 0


def test_labels_are_read(tmp_path: Path) -> None:
    model = parse_graph(
        "flat (float[N, 3, 4, 4] pixels) => (float[N, 48] logits) {logits = Flatten (pixels)}"
    )
    onnx.save(model, tmp_path / "m.onnx")
    assert OnnxRuntimeClassifier(tmp_path / "m.onnx").labels is None
    entry = model.metadata_props.add(key="robust_export.labels", value='["a", "b"]')
    onnx.save(model, tmp_path / "m.onnx")
    assert OnnxRuntimeClassifier(tmp_path / "m.onnx").labels == ["a", "b"]
    entry.value = "a, b"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="expected a JSON list"):
        OnnxRuntimeClassifier(tmp_path / "m.onnx")


@pytest.mark.parametrize("opener", [OnnxRuntimeClassifier, ReferenceClassifier])
def test_missing_output_shape_is_inferred(tmp_path: Path, opener: type[Any]) -> None:
    model = parse_graph(
        "flat (float[N, 3, 4, 4] pixels) => (float[N, 48] logits) {logits = Flatten (pixels)}"
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    classifier = opener(tmp_path / "m.onnx")
    assert (classifier.input_shape, classifier.classes) == ((3, 4, 4), 48)


@pytest.mark.parametrize("content", [b"", b"not a protobuf", b"\x08\x07", b"PK\x03\x04 a zip"])
def test_invalid_file_raises(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"m\.onnx"):
        OnnxRuntimeClassifier(path)


def test_truncated_file_raises(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes((trained / "model.onnx").read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match=r"m\.onnx"):
        OnnxRuntimeClassifier(path)


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        OnnxRuntimeClassifier(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("inputs", "output"),
    [([("a", [1, 3, 8, 8]), ("b", [1])], [1, 5]), ([("a", [1, 8])], [1, 5]), ([("a", [1, 3, 8, 8])], [5])],
    ids=["two inputs", "no image", "no logits"],
)
def test_non_classifier_raises(
    tmp_path: Path, inputs: list[tuple[str, list[int]]], output: list[int]
) -> None:
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    shape = onnx.numpy_helper.from_array(np.array(output), "shape")
    node = onnx.helper.make_node("ConstantOfShape", ["shape"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "g", [info(name, kind, dims) for name, dims in inputs], [info("y", kind, output)], [shape]
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="expected"):
        OnnxRuntimeClassifier(tmp_path / "m.onnx")
