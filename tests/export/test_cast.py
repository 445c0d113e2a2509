"""Half precision: the rounding that PyTorch does, everywhere but in the normalisation and the logits."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from robust_export.bundle import Bundle
from robust_export.errors import InvalidValue, UnknownName, UnsupportedModel
from robust_export.export import cast as precision
from robust_export.export.bundle_onnx import export_bundle
from robust_export.export.calibration import Calibration
from robust_export.export.cast import cast_model
from robust_export.export.exporter import check_file, to_onnx
from robust_export.export.half import HALVES
from robust_export.export.op_schemas import formats
from robust_export.nn.models import create_model
from robust_export.nn.operator import DOMAIN, OPERATOR
from robust_export.nn.sparta import Sparta, sparta_modules
from robust_export.runtimes.onnx_model import sparta_nodes
from tests.export.test_exporter import evaluate, learnt

OPSET = 22  # which has both formats


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value, as shape inference finds it."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {i.name: i.data_type for i in graph.initializer}
    return found | {
        v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)
    }


def initialisers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {i.name: i for i in model.graph.initializer}


@pytest.fixture(scope="module")
def wide() -> onnx.ModelProto:
    return to_onnx(learnt(), 16, opset=OPSET)


@pytest.mark.parametrize("name", HALVES)
def test_it_rounds_as_much_as_pytorchs_own_half(name: str, wide: onnx.ModelProto) -> None:
    """Against float64: not more than a few times PyTorch's error in that format, and not far less."""
    x = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = learnt()
    with torch.no_grad():
        normal = (x - model.mean) / model.std
        halved = learnt().backbone.to(HALVES[name].dtype)(normal.to(HALVES[name].dtype)).double()
        exact = model.double()(x.double())
    found = torch.from_numpy(evaluate(cast_model(wide, name), {"pixels": x.numpy()}))
    error, usual = (found - exact).square().mean().sqrt(), (halved - exact).square().mean().sqrt()
    assert found.dtype == torch.float32
    assert usual / 4 < error < 2 * usual


@pytest.mark.parametrize("name", HALVES)
def test_the_file_is_valid_and_self_contained(name: str, wide: onnx.ModelProto) -> None:
    model, half = cast_model(wide, name), HALVES[name].element
    assert cast_model(wide, name).SerializeToString() == model.SerializeToString()
    check_file(model, OPSET)
    kinds = types(model)
    assert [(f.domain, f.name) for f in model.functions] == [(DOMAIN, OPERATOR)]
    assert kinds["pixels"] == kinds["logits"] == kinds["sub"] == kinds["div"] == TensorProto.FLOAT
    assert [n.op_type for n in model.graph.node if n.op_type == "Cast"] == ["Cast", "Cast"]
    assert len(sparta_nodes(model)) == 11
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", OPERATOR):
            assert {kinds[value] for value in node.input} == {half}, node.name
    stated = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert stated.items() <= kinds.items()


@pytest.mark.parametrize("name", HALVES)
def test_weights_are_rounded_once_to_nearest(name: str, wide: onnx.ModelProto) -> None:
    before, after = initialisers(wide), initialisers(cast_model(wide, name))
    changed = [key for key, tensor in after.items() if tensor.data_type == HALVES[name].element]
    assert len(changed) > 20
    for key in changed:
        exact = numpy_helper.to_array(before[key])
        found = torch.frombuffer(bytearray(after[key].raw_data), dtype=HALVES[name].dtype)
        expected = exact.astype(np.float16).astype(np.float32) if name == "fp16" else _bf16(exact)
        np.testing.assert_array_equal(found.float().numpy(), expected.ravel())


def _bf16(exact: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Round to bfloat16 by its definition: the nearest float32 whose low 16 bits are 0, ties to even."""
    bits = exact.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


class Magnified(nn.Module):
    """Shows differences of pixels that half precision cannot hold: 4096 (pixel - 0.5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, pixels: Tensor) -> Tensor:
        magnified: Tensor = self.conv((pixels - 0.5) / (1 / 4096))
        return magnified.flatten(1)


def test_the_normalisation_stays_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = to_onnx(Magnified(), 2, 1, opset=OPSET)
    x = np.full((1, 1, 2, 2), 0.5 + 2**-16, np.float32)
    for name in HALVES:
        np.testing.assert_array_equal(evaluate(cast_model(wide, name), {"pixels": x}), 2**-4)
    monkeypatch.setattr(precision, "normalisation", lambda graph: set())
    for name in HALVES:  # in half precision the difference would be lost
        np.testing.assert_array_equal(evaluate(cast_model(wide, name), {"pixels": x}), 0)


def test_what_a_schema_does_not_admit_stays_float32() -> None:
    """Constants, a Cast, an operator without half precision, and a weight that both sides read."""
    make = helper.make_node
    nodes = [
        make("Constant", [], ["two"], value_float=2.0),
        make("Sub", ["pixels", "shift"], ["normal"]),
        make("Resize", ["normal", "", "scales"], ["large"], mode="nearest"),
        make("Add", ["large", "shift"], ["shifted"]),
        make("Mul", ["shifted", "two"], ["twice"]),
        make("Cast", ["twice"], ["whole"], to=TensorProto.INT64),
        make("Cast", ["whole"], ["float"], to=TensorProto.FLOAT),
        make("Add", ["float", "twice"], ["sum"]),
        make("Range", ["zero", "four", "one"], ["range"]),
        make("Add", ["sum", "range"], ["ranged"]),
        make("Flatten", ["ranged"], ["logits"]),
    ]
    values: dict[str, Any] = {"shift": 0.25, "scales": [1, 1, 2, 2], "zero": 0, "four": 4, "one": 1}
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in values.items()]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("pixels", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [info("logits", TensorProto.FLOAT, ["N", 16])], tensors,
    )  # fmt: skip
    wide = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    x = np.array([[[[0, 0.5], [0.75, 2]]]], np.float32)
    large = np.repeat(np.repeat(x, 2, 2), 2, 3) * 2
    expected = (np.trunc(large) + large + np.arange(4)).reshape(1, 16)
    for name, half in HALVES.items():
        model = cast_model(wide, name)
        check_file(model, OPSET)
        found = initialisers(model)
        assert found["shift"].data_type == found["scales"].data_type == TensorProto.FLOAT
        assert found["two"].data_type == found[f"shift_{name}"].data_type == half.element
        assert types(model)["range"] == TensorProto.FLOAT
        np.testing.assert_array_equal(evaluate(model, {"pixels": x}), expected)


@pytest.mark.parametrize(
    ("operator", "opset", "other", "inputs", "outputs"),
    [
        ("Conv", 20, "tensor(bfloat16)", [False] * 3, [False]),
        ("Conv", 22, "tensor(bfloat16)", [True] * 3, [True]),
        ("Resize", 20, "tensor(float16)", [True, True, False], [True]),
        ("Cast", 20, "tensor(float16)", [True] * 3, [False]),
        ("Concat", 20, "tensor(float16)", [True] * 3, [True]),
        ("NoSuchOperator", 20, "tensor(float16)", [False] * 3, [False]),
    ],
)
def test_formats(operator: str, opset: int, other: str, inputs: list[bool], outputs: list[bool]) -> None:
    if operator == "Cast":
        inputs = inputs[:1]
    names = ["a", "b", "c"][: len(inputs)]
    node = helper.make_node(operator, names, ["y"])
    assert formats(node, {"": opset}, {"a", "b", "c", "y"}, other) == (inputs, outputs)


@functools.cache
def _small() -> bytes:
    content: bytes = to_onnx(
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), 2, opset=OPSET
    ).SerializeToString()
    return content


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("value", [1e5, float("inf"), float("nan"), -1e5])
def test_weights_beyond_the_format_are_an_error_that_names_them(name: str, value: float) -> None:
    wide = onnx.ModelProto.FromString(_small())
    bias = initialisers(wide)["0.bias"]
    bias.CopyFrom(numpy_helper.from_array(np.array([value, 0], np.float32), "0.bias"))
    if name == "bf16" and np.isfinite(value):
        cast_model(wide, name)
    else:
        with pytest.raises(UnsupportedModel, match=rf"0\.bias has .*{name} ends at"):
            cast_model(wide, name)


def test_a_guard_against_division_by_0_stays_one() -> None:
    class Unit(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            flat = pixels.flatten(1)
            norm: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
            return flat / norm.clamp_min(1e-12)

    model = cast_model(to_onnx(Unit(), 2, 1), "fp16")
    np.testing.assert_array_equal(evaluate(model, {"pixels": np.zeros((1, 1, 2, 2), np.float32)}), 0)


def test_a_graph_within_the_graph_is_refused() -> None:
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    branch = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "b", [], [info])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "g", [], [info], [numpy_helper.from_array(np.array(True), "yes")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    with pytest.raises(UnsupportedModel, match=r"If .* holds a graph"):
        cast_model(model, "fp16")


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "edgenext_xx_small"])
def test_networks_of_many_kinds(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(f"{name}_sparta", 5, 32).eval()
    for gate in sparta_modules(network).values():
        nn.init.normal_(gate.weight, std=0.1)
    wide = to_onnx(network, 32, opset=OPSET)
    models = {half: cast_model(wide, half) for half in HALVES}
    for model in models.values():
        check_file(model, OPSET)
        types(model)
    x = torch.rand(4, 3, 32, 32)
    session = ort.InferenceSession(models["fp16"].SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": x.numpy()})[0]
    with torch.no_grad():
        expected = network.double()(x.double()).numpy()
    assert 1e-5 < np.abs(found - expected).max() / np.abs(expected).max() < 1e-2


@pytest.mark.parametrize(("name", "opset"), [("fp16", 20), ("bf16", 22)])
def test_a_bundles_file(name: str, opset: int, bundle: Bundle) -> None:
    path = export_bundle(bundle, precision=name)
    assert path == bundle.path / f"model.{name}.onnx"
    entry = Bundle.open(bundle.path).manifest["files"][path.name]
    assert (entry["kind"], entry["precision"], entry["opset"]) == ("onnx", name, opset)
    wide, half = onnx.load(bundle.file("model.onnx")), onnx.load(path)
    facts, known = ({e.key: json.loads(e.value) for e in m.metadata_props} for m in (half, wide))
    assert facts == known | {"robust_export.precision": name}
    assert path.stat().st_size < 0.6 * bundle.file("model.onnx").stat().st_size
    assert bundle.files("onnx") == ["model.onnx", path.name]


def test_what_cannot_be_asked_for(bundle: Bundle) -> None:
    before = sorted(file.name for file in bundle.path.iterdir())
    with pytest.raises(InvalidValue, match="opset is 21; bf16 needs 22 to 25"):
        export_bundle(bundle, 21, "bf16")
    with pytest.raises(InvalidValue, match="only int8 is calibrated"):
        export_bundle(bundle, precision="fp16", calibration=Calibration())
    with pytest.raises(UnknownName, match="fp16"):
        export_bundle(bundle, precision="fp15")
    assert sorted(file.name for file in bundle.path.iterdir()) == before


def test_sparta_alone_is_lowered() -> None:
    """The first thing after the pixels is a gate: the Cast goes before it."""
    module = nn.Sequential(Sparta(3), nn.Flatten())
    model = cast_model(to_onnx(module, 4), "fp16")
    assert [node.op_type for node in model.graph.node][:2] == ["Cast", OPERATOR]


def test_nothing_is_written_when_a_weight_does_not_fit(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robust_export.export import bundle_onnx as room

    def load(opened: Bundle) -> nn.Module:
        network = nn.Sequential(Sparta(3), nn.Flatten())
        with torch.no_grad():
            next(iter(sparta_modules(network).values())).weight[0] = 1e6
        return network

    monkeypatch.setattr(room, "load", load)
    with pytest.raises(UnsupportedModel, match="fp16"):
        export_bundle(bundle, precision="fp16")
    assert not Path(bundle.path / "model.fp16.onnx").exists()
