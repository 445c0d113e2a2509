"""Exported files: valid, self-contained, with a free batch size, and equal to the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from torch import Tensor, nn

from robust_export.bundle import Bundle
from robust_export.errors import InvalidValue, RobustExportError, UnsupportedModel
from robust_export.export.exporter import OPSETS, export_onnx
from robust_export.export.function_body import sparta_function
from robust_export.nn.load import load
from robust_export.nn.onnx_operator import DOMAIN, OPERATOR
from robust_export.nn.sparta import Sparta, sparta, sparta_modules
from robust_export.runtimes.onnx_model import sparta_nodes
from tests.export.networks import evaluate, tiny_resnet


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_agrees_with_pytorch_in_float64(exported: Path, batch: int) -> None:
    x = torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
    found = evaluate(onnx.load(exported), {"pixels": x.numpy()})
    with torch.no_grad():
        expected = tiny_resnet().double()(x.double())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_file_is_valid_and_self_contained(exported: Path) -> None:
    proto = onnx.load(exported)
    onnx.checker.check_model(proto, full_check=True)
    nodes = sparta_nodes(proto)
    assert len(nodes) == 11  # 3 in the stem, 2 in each of 4 blocks
    assert [(f.domain, f.name) for f in proto.functions] == [(DOMAIN, OPERATOR)]
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 20, DOMAIN: 1}
    for node in nodes:
        (channels,) = (a.i for a in node.attribute if a.name == "channels")
        weight = next(t for t in proto.graph.initializer if t.name == node.input[1])
        assert list(weight.dims) == [channels, 1, 3, 3]
    assert proto.graph.input[0].name == "pixels"
    assert proto.graph.output[0].name == "logits"
    assert not any(t.external_data for t in proto.graph.initializer)


def test_shared_gate_is_stored_once(exported: Path) -> None:
    proto = onnx.load(exported)
    used = {name for node in sparta_nodes(proto) for name in node.input[1:]}
    assert len(used) == 2 * len(sparta_modules(tiny_resnet())) == 6  # widths 6, 8 and 16
    shapes = [tuple(t.dims) for t in proto.graph.initializer]
    assert shapes.count((8, 1, 3, 3)) == shapes.count((16, 1, 3, 3)) == 1


def test_file_has_no_local_paths(exported: Path) -> None:
    content = exported.read_bytes()
    for word in (str(Path.cwd()), "site-packages", "stack_trace"):
        assert word.encode() not in content


@pytest.mark.parametrize("opset", [OPSETS.start, OPSETS.stop - 1])
def test_opsets(opset: int, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Sparta(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    proto = onnx.load(export_onnx(model, tmp_path / "m.onnx", 8, opset=opset))
    assert next(e.version for e in proto.opset_import if e.domain == "") == opset
    assert next(e.version for e in proto.functions[0].opset_import if e.domain == "") == opset


@pytest.mark.parametrize("opset", [0, 17, 26, -1])
def test_invalid_opset_raises(opset: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=f"opset is {opset}; expected 18 to 25"):
        export_onnx(nn.Identity(), tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_network_without_sparta_has_no_function(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    proto = onnx.load(export_onnx(model, tmp_path / "relu.onnx", 16))
    assert not proto.functions
    assert not sparta_nodes(proto)


def test_export_is_deterministic_and_pure(exported: Path, tmp_path: Path) -> None:
    model = tiny_resnet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert export_onnx(model, tmp_path / "m.onnx", 16).read_bytes() == exported.read_bytes()
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_function_body_agrees_with_pytorch(kernel: int, kind: type) -> None:
    """Compare one node with PyTorch, on feature maps smaller than the kernel."""
    generator = torch.Generator().manual_seed(kernel)
    dtype = torch.float32 if kind is np.float32 else torch.float16
    x, w, b = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((2, 3, 4, 5), (3, 1, kernel, kernel), (3,))
    )
    names, elem = ("x", "w", "b"), onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(OPERATOR, names, ["y"], domain=DOMAIN, channels=3)
    inputs = [info(n, elem, t.shape) for n, t in zip(names, (x, w, b), strict=True)]
    graph = onnx.helper.make_graph([node], "one", inputs, [info("y", elem, x.shape)])
    imports = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(DOMAIN, 1)]
    proto = onnx.helper.make_model(graph, opset_imports=imports, functions=[sparta_function(20)])
    onnx.checker.check_model(proto, full_check=True)
    feeds = {n: t.numpy() for n, t in zip(names, (x, w, b), strict=True)}
    found = evaluate(proto, feeds)
    expected = sparta(x, w, b)
    assert found.dtype == kind
    tolerance = 1e-5 if kind is np.float32 else 2e-3
    np.testing.assert_allclose(found, expected.numpy(), rtol=tolerance, atol=tolerance)


def test_bundle_file_metadata(trained: Path) -> None:
    bundle = Bundle.open(trained)
    model = onnx.load(bundle.file("model.onnx"))
    found = {e.key.removeprefix("robust_export."): json.loads(e.value) for e in model.metadata_props}
    assert found["labels"] == bundle.labels
    assert found["threat"] == {"norm": "Linf", "eps": 0.1}
    assert found["preprocessing"]["normalisation"] == "inside the model"
    assert found["model"] == "resnet10t_sparta"
    assert found["weights_sha256"] == bundle.manifest["files"]["weights.safetensors"]["sha256"]
    assert found["version"]
    entry = bundle.manifest["files"]["model.onnx"]
    assert entry["kind"] == "onnx"
    assert entry["precision"] == "fp32"


def test_bundle_file_agrees_with_its_network(trained: Path) -> None:
    bundle = Bundle.open(trained)
    x = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    file = onnx.load(bundle.file("model.onnx"))
    found = evaluate(file, {"pixels": x})
    with torch.no_grad():
        np.testing.assert_allclose(found, load(bundle)(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)[:, :4]


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.parametrize("module", [FixedBatch(), DataDependent()])
def test_unsupported_network_raises_a_short_error(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel) as error:
        export_onnx(module, tmp_path / "m.onnx", 8)
    assert len(str(error.value)) < 1000
    assert not list(tmp_path.iterdir())


def test_unwritable_path_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RobustExportError, match="could not write"):
        export_onnx(nn.Flatten(), tmp_path / "file" / "m.onnx", 8)
