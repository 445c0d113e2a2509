"""Casts to half precision: rounding as PyTorch's, in the whole graph but the normalisation and the logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from robust_export.bundle import Bundle
from robust_export.errors import InvalidValue, UnknownName, UnsupportedModel
from robust_export.export import cast
from robust_export.export.bundle_onnx import export_bundle
from robust_export.export.calibration import Calibration
from robust_export.export.cast import cast_model
from robust_export.export.exporter import check_exported, to_onnx
from robust_export.export.half import HALF_TYPES
from robust_export.export.op_schemas import half_inputs_outputs
from robust_export.nn.onnx_operator import DOMAIN, OPERATOR
from robust_export.runtimes.onnx_model import sparta_nodes
from tests.export.networks import evaluate, parse_graph, shallow, tiny_resnet

OPSET = 22  # the first with a bfloat16 Conv

Array = np.ndarray[Any, np.dtype[np.float32]]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value, from strict shape inference."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {i.name: i.data_type for i in graph.initializer} | {
        v.name: v.type.tensor_type.elem_type for v in values
    }


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


@pytest.mark.parametrize("name", HALF_TYPES)
def test_error_is_that_of_pytorch_in_half(name: str, exported_opset22: onnx.ModelProto) -> None:
    """The error to float64 is at most twice PyTorch's in that type, and not far less."""
    x = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = tiny_resnet()
    with torch.no_grad():
        normalised = (x - model.mean) / model.std
        dtype = HALF_TYPES[name].dtype
        half = tiny_resnet().backbone.to(dtype)(normalised.to(dtype)).double()
        exact = model.double()(x.double())
    found = torch.from_numpy(evaluate(cast_model(exported_opset22, name), {"pixels": x.numpy()}))
    error, usual_error = (found - exact).square().mean().sqrt(), (half - exact).square().mean().sqrt()
    assert found.dtype == torch.float32
    assert usual_error / 4 < error < 2 * usual_error


@pytest.mark.parametrize("name", HALF_TYPES)
def test_file_is_valid_and_self_contained(name: str, exported_opset22: onnx.ModelProto) -> None:
    model, half = cast_model(exported_opset22, name), HALF_TYPES[name].element
    assert cast_model(exported_opset22, name).SerializeToString() == model.SerializeToString()
    check_exported(model, OPSET)
    found = types(model)
    assert [(f.domain, f.name) for f in model.functions] == [(DOMAIN, OPERATOR)]
    assert found["pixels"] == found["logits"] == found["sub"] == found["div"] == TensorProto.FLOAT
    assert [n.op_type for n in model.graph.node if n.op_type == "Cast"] == ["Cast", "Cast"]
    assert len(sparta_nodes(model)) == 11
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", OPERATOR):
            assert {found[value] for value in node.input} == {half}, node.name
    stated = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert stated.items() <= found.items()


@pytest.mark.parametrize("name", HALF_TYPES)
def test_weights_are_rounded_to_nearest(name: str, exported_opset22: onnx.ModelProto) -> None:
    before, after = initializers(exported_opset22), initializers(cast_model(exported_opset22, name))
    cast_names = [key for key, tensor in after.items() if tensor.data_type == HALF_TYPES[name].element]
    assert len(cast_names) > 20
    for key in cast_names:
        exact = numpy_helper.to_array(before[key])
        found = torch.frombuffer(bytearray(after[key].raw_data), dtype=HALF_TYPES[name].dtype)
        expected = exact.astype(np.float16).astype(np.float32) if name == "fp16" else round_to_bf16(exact)
        np.testing.assert_array_equal(found.float().numpy(), expected.ravel())


def round_to_bf16(exact: Array) -> Array:
    """Round to bfloat16 by its definition: the nearest float32 whose low 16 bits are 0, ties to even."""
    bits = exact.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("name", HALF_TYPES)
def test_normalisation_stays_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """4096 (pixel - 0.5) shows a difference of pixels that half precision cannot represent."""
    model = parse_graph(
        """magnify (float[N, 1, 2, 2] pixels) => (float[N, 1, 2, 2] logits) {
            shifted = Sub (pixels, mean)
            scaled = Div (shifted, std)
            logits = Conv (scaled, weight)
        }""",
        mean=0.5, std=1 / 4096, weight=[[[[1]]]],
    )  # fmt: skip
    x = np.full((1, 1, 2, 2), 0.5 + 2**-16, np.float32)
    np.testing.assert_array_equal(evaluate(cast_model(model, name), {"pixels": x}), 2**-4)
    monkeypatch.setattr(cast, "normalisation_outputs", lambda graph: set())
    np.testing.assert_array_equal(evaluate(cast_model(model, name), {"pixels": x}), 0)


@pytest.mark.parametrize("name", HALF_TYPES)
def test_unsupported_inputs_stay_float32(name: str) -> None:
    """Constants, Casts, an operator without half precision (Range), a weight that is read in both types."""
    model = parse_graph(
        """mixed (float[N, 1, 2, 2] pixels) => (float[N, 16] logits) {
            two = Constant <value_float = 2.0> ()
            normal = Sub (pixels, shift)
            large = Resize <mode = "nearest"> (normal, , scales)
            shifted = Add (large, shift)
            twice = Mul (shifted, two)
            whole = Cast <to = 7> (twice)
            float = Cast <to = 1> (whole)
            sum = Add (float, twice)
            range = Range (zero, four, one)
            ranged = Add (sum, range)
            logits = Flatten (ranged)
        }""",
        shift=0.25, scales=[1, 1, 2, 2], zero=0, four=4, one=1,
    )  # fmt: skip
    x = np.array([[[[0, 0.5], [0.75, 2]]]], np.float32)
    large = np.repeat(np.repeat(x, 2, 2), 2, 3) * 2
    expected = (np.trunc(large) + large + np.arange(4)).reshape(1, 16)
    result, half = cast_model(model, name), HALF_TYPES[name].element
    check_exported(result, OPSET)
    found = initializers(result)
    assert found["shift"].data_type == found["scales"].data_type == TensorProto.FLOAT
    assert found["two"].data_type == found[f"shift_{name}"].data_type == half
    assert types(result)["range"] == TensorProto.FLOAT
    np.testing.assert_array_equal(evaluate(result, {"pixels": x}), expected)


@pytest.mark.parametrize(
    ("operator", "opset", "half", "inputs", "outputs"),
    [
        ("Conv", 20, "tensor(bfloat16)", [False] * 3, [False]),
        ("Conv", 22, "tensor(bfloat16)", [True] * 3, [True]),
        ("Resize", 20, "tensor(float16)", [True, True, False], [True]),
        ("Cast", 20, "tensor(float16)", [True], [False]),
        ("Concat", 20, "tensor(float16)", [True] * 3, [True]),
        ("NoSuchOperator", 20, "tensor(float16)", [False] * 3, [False]),
    ],
)
def test_half_inputs_outputs(
    operator: str, opset: int, half: str, inputs: list[bool], outputs: list[bool]
) -> None:
    node = helper.make_node(operator, ["a", "b", "c"][: len(inputs)], ["y"])
    assert half_inputs_outputs(node, {"": opset}, {"a", "b", "c", "y"}, half) == (inputs, outputs)


def with_bias(value: float) -> onnx.ModelProto:
    return parse_graph(
        """small (float[N, 3, 2, 2] pixels) => (float[N, 2, 2, 2] logits) {
            logits = Conv (pixels, weight, bias)
        }""",
        weight=np.ones((2, 3, 1, 1)), bias=[value, 0],
    )  # fmt: skip


@pytest.mark.parametrize("name", HALF_TYPES)
@pytest.mark.parametrize("value", [1e5, float("inf"), float("nan"), -1e5])
def test_weight_out_of_range_raises(name: str, value: float) -> None:
    if name == "bf16" and np.isfinite(value):
        cast_model(with_bias(value), name)
    else:
        with pytest.raises(UnsupportedModel, match=rf"bias has .*largest finite value of {name}"):
            cast_model(with_bias(value), name)


def test_tiny_scalar_does_not_become_zero() -> None:
    """1e-12, which prevents 0 / 0, is below the smallest float16."""
    model = parse_graph(
        """unit (float[N, 4] pixels) => (float[N, 4] logits) {
            axes = Constant <value_ints = [1]> ()
            norm = ReduceL2 (pixels, axes)
            positive = Max (norm, least)
            logits = Div (pixels, positive)
        }""",
        opset=20, least=1e-12,
    )  # fmt: skip
    found = evaluate(cast_model(model, "fp16"), {"pixels": np.zeros((1, 4), np.float32)})
    np.testing.assert_array_equal(found, 0)


def test_subgraph_raises() -> None:
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    branch = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "b", [], [info])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "g", [], [info], [numpy_helper.from_array(np.array(True), "yes")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    with pytest.raises(UnsupportedModel, match=r"If .* has a subgraph"):
        cast_model(model, "fp16")


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "edgenext_xx_small"])
def test_other_architectures(name: str) -> None:
    """Squeeze-and-excite, layer norm, attention and positional encodings."""
    network = shallow(name)
    model = to_onnx(network, 32, opset=OPSET)
    results = {half: cast_model(model, half) for half in HALF_TYPES}
    for result in results.values():
        check_exported(result, OPSET)
        types(result)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    session = ort.InferenceSession(results["fp16"].SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": x.numpy()})[0]
    with torch.no_grad():
        expected = network.double()(x.double()).numpy()
    assert 1e-5 < np.abs(found - expected).max() / np.abs(expected).max() < 1e-2


@pytest.mark.parametrize(("name", "opset"), [("fp16", 20), ("bf16", 22)])
def test_bundle_file(name: str, opset: int, all_precisions: Path) -> None:
    bundle = Bundle.open(all_precisions)
    path = bundle.file(f"model.{name}.onnx")
    entry = bundle.manifest["files"][path.name]
    assert (entry["kind"], entry["precision"], entry["opset"]) == ("onnx", name, opset)
    source = bundle.file("model.onnx")
    found, expected = (
        {e.key: json.loads(e.value) for e in onnx.load(file).metadata_props} for file in (path, source)
    )
    assert found == expected | {"robust_export.precision": name}
    assert path.stat().st_size < 0.6 * source.stat().st_size


def test_invalid_arguments_raise(bundle: Bundle) -> None:
    before = sorted(file.name for file in bundle.path.iterdir())
    with pytest.raises(InvalidValue, match="opset is 21; bf16 needs 22 to 25"):
        export_bundle(bundle, 21, "bf16")
    with pytest.raises(InvalidValue, match="only int8 is calibrated"):
        export_bundle(bundle, precision="fp16", calibration=Calibration())
    with pytest.raises(UnknownName, match="fp16"):
        export_bundle(bundle, precision="fp15")
    assert sorted(file.name for file in bundle.path.iterdir()) == before


def test_sparta_alone_is_cast() -> None:
    model = parse_graph(
        """one (float[N, 3, 4, 4] pixels) => (float[N, 3, 4, 4] logits) {
            logits = ai.sparta.Sparta <channels = 3> (pixels, weight, bias)
        }""",
        weight=np.zeros((3, 1, 3, 3)), bias=np.zeros(3),
    )  # fmt: skip
    assert [node.op_type for node in cast_model(model, "fp16").graph.node] == ["Cast", OPERATOR, "Cast"]


def test_nothing_is_written_on_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robust_export.export.bundle_onnx.to_onnx", lambda *_, **__: with_bias(1e6))
    with pytest.raises(UnsupportedModel, match="fp16"):
        export_bundle(bundle, precision="fp16")
    assert not (bundle.path / "model.fp16.onnx").exists()
