"""The graph for TensorRT computes what the ONNX file does, with either plugin or function body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from robust_export.errors import ArtifactError, UnknownName
from robust_export.export.function_body import sparta_function
from robust_export.export.tensorrt.graph import fold_integer_biases, fuse_additions, read_graph
from robust_export.runtimes.onnx_model import sparta_nodes


def logits(model: onnx.ModelProto) -> npt.NDArray[np.float32]:
    pixels = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [result] = session.run(None, {"pixels": pixels})
    return np.asarray(result)


@pytest.mark.parametrize(("plugin", "namespace"), [("library", b""), ("aot", b"sparta")])
def test_plugin_graph_has_no_function(trained: Path, plugin: str, namespace: bytes) -> None:
    path = trained / "model.onnx"
    before = onnx.load(path)
    graph = read_graph(path, plugin)
    nodes = sparta_nodes(graph.model)
    assert len(nodes) == len(sparta_nodes(before)) > 0
    assert not graph.model.functions
    for node in nodes:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert given["plugin_version"] == b"1"
        assert given["plugin_namespace"] == namespace
        assert given.get("aot") == (1 if plugin == "aot" else None)
        assert given["channels"] > 0
    assert graph.sparta == tuple(node.name for node in nodes)
    assert len(set(graph.sparta)) == len(nodes)
    assert graph.products == sum(n.op_type in ("Conv", "Gemm") for n in before.graph.node)
    assert read_graph(path, plugin).content() == graph.content()


def test_nodes_get_names(trained: Path, tmp_path: Path) -> None:
    model = onnx.load(trained / "model.onnx")
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "nameless.onnx")
    names = read_graph(tmp_path / "nameless.onnx").sparta
    assert all(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("file", ["model.onnx", "model.int8.onnx"])
def test_function_body_is_inlined(all_precisions: Path, file: str) -> None:
    graph = read_graph(all_precisions / file, "none")
    assert not graph.model.functions
    assert not sparta_nodes(graph.model)
    np.testing.assert_allclose(logits(graph.model), logits(onnx.load(all_precisions / file)), atol=1e-5)


def test_int32_biases_become_float32(all_precisions: Path) -> None:
    model = onnx.load(all_precisions / "model.int8.onnx")
    int32_names = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT32}
    expected = logits(model)
    readers = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in int32_names]
    assert readers
    before = len(model.graph.node)
    fold_integer_biases(model)
    assert len(model.graph.node) == before - len(readers)
    assert not {i.name for i in model.graph.initializer} & int32_names
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(logits(model), expected, atol=1e-5)


def without_plugins(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace SpartaAdd by Add and Sparta, and add the function body, so that ONNX Runtime runs it."""
    nodes = []
    for node in model.graph.node:
        if node.op_type == "SpartaAdd":
            total = f"{node.output[0]}_sum"
            nodes.append(helper.make_node("Add", list(node.input[:2]), [total]))
            node.op_type = "Sparta"
            node.input[:] = [total, *node.input[2:]]
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if not model.functions:
        model.functions.append(sparta_function(opset))
    for node in sparta_nodes(model):
        kept = [a for a in node.attribute if a.name == "channels"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return model


def test_additions_are_fused(trained: Path) -> None:
    path = trained / "model.onnx"
    before = onnx.load(path)
    sums = {n.output[0] for n in before.graph.node if n.op_type == "Add"}
    expected = sum(n.input[0] in sums for n in sparta_nodes(before))
    assert expected > 0
    graph = read_graph(path, fuse_add=True)
    fused = [n for n in graph.model.graph.node if n.op_type == "SpartaAdd"]
    assert len(fused) == expected
    assert set(graph.sparta) == {n.name for n in sparta_nodes(before)}
    assert all(len(n.input) == 4 for n in fused)
    np.testing.assert_allclose(logits(without_plugins(graph.model)), logits(before), atol=1e-5)


def small(add: list[str], shape: str, outputs: str = "float[N, 4, 5, 5] y") -> onnx.ModelProto:
    """Return a graph with one addition and one Sparta node."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 20, "ai.sparta" : 1]>
        small (float[N, 4, 5, 5] a, float{shape} b, float[4, 1, 3, 3] w, float[4] c) => ({outputs}) {{
            s = Add ({", ".join(add)})
            y = ai.sparta.Sparta <channels = 4> (s, w, c)
        }}
    """)
    model.functions.append(sparta_function(20))
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (small(["a", "b"], "[N, 4, 5, 5]"), 1),
        (small(["a", "a"], "[N, 4, 5, 5]"), 1),
        (small(["a", "b"], "[1, 4, 1, 1]"), 0),
        (small(["a", "b"], "[M, 4, 5, 5]"), 0),
        (small(["a", "b"], "[4, 5, 5]"), 0),
        (small(["a", "b"], "[N, 4, 5, 5]", "float[N, 4, 5, 5] y, float[N, 4, 5, 5] s"), 0),
    ],
    ids=["two maps", "one map twice", "broadcast", "other batch", "fewer dimensions", "read elsewhere"],
)
def test_which_additions_are_fused(model: onnx.ModelProto, expected: int) -> None:
    assert fuse_additions(model) == expected
    assert sum(n.op_type == "Add" for n in model.graph.node) == 1 - expected


def test_invalid_file_raises(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="plugin 'aott'"):
        read_graph(trained / "model.onnx", "aott")
    for content in (b"", b"hello, this is no ONNX file", bytes(range(256))):
        (tmp_path / "odd.onnx").write_bytes(content)
        with pytest.raises(ArtifactError, match="ONNX file"):
            read_graph(tmp_path / "odd.onnx")
    model = onnx.load(trained / "model.onnx")
    del model.functions[:]
    onnx.save(model, tmp_path / "bodiless.onnx")
    assert read_graph(tmp_path / "bodiless.onnx").sparta
    with pytest.raises(ArtifactError, match="no function body"):
        read_graph(tmp_path / "bodiless.onnx", "none")
