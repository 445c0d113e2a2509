"""ReferenceClassifier, its Conv and AveragePool, and the precision of files."""

from __future__ import annotations

import itertools
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError
from robust_export.export.cast import cast_model
from robust_export.nn.load import load
from robust_export.runtimes import onnx_reference_ops as ops
from robust_export.runtimes.onnx_model import model_precision, ran_in_precision
from robust_export.runtimes.onnx_reference import ReferenceClassifier
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.registry import RUNTIMES, open_file
from tests.export.networks import parse_graph

X86 = platform.machine() in ("x86_64", "AMD64")


def images(n: int) -> Any:
    return np.random.default_rng(n).random((n, 3, 8, 8), dtype=np.float32)


@pytest.fixture
def halves(all_precisions: Path) -> dict[str, Path]:
    """The trained network's files in fp16 and bf16."""
    return {name: all_precisions / f"model.{name}.onnx" for name in ("fp16", "bf16")}


@pytest.mark.parametrize("n", [1, 5, 8])
def test_agrees_with_pytorch(trained: Path, n: int) -> None:
    classifier = ReferenceClassifier(trained / "model.onnx", batch_size=5)
    with torch.no_grad():
        expected = load(trained).double()(torch.from_numpy(images(n)).double()).numpy()
    found = classifier(images(n))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_metadata_is_read(trained: Path) -> None:
    classifier = open_file(trained / "model.onnx", "reference")
    assert isinstance(classifier, ReferenceClassifier)
    assert "reference" in RUNTIMES
    assert classifier.labels == Bundle.open(trained).labels
    assert (classifier.input_shape, classifier.classes) == ((3, 8, 8), 10)
    assert (classifier.sparta_nodes, classifier.fused_nodes()) == (11, 0)
    assert (classifier.runtime, classifier.precision) == ("reference", "fp32")


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_precision_agrees_with_evaluator(name: str, halves: dict[str, Path]) -> None:
    """Compare with the evaluator's own operators, up to a few roundings."""
    found = ReferenceClassifier(halves[name])(images(8))
    outputs: Any = onnx.reference.ReferenceEvaluator(str(halves[name])).run(None, {"pixels": images(8)})
    own = outputs[0]
    unit = 2.0 ** (-11 if name == "fp16" else -8) * np.abs(own).max()
    assert np.abs(found - own).max() < 4 * unit
    assert np.array_equal(found, found.astype(np.float16)) or name == "bf16"  # the logits are float16 values


CONVOLUTIONS = [
    {"group": 1, "strides": [1, 1], "pads": [0, 0, 0, 0]},
    {"group": 2, "strides": [2, 1], "pads": [1, 2, 1, 2], "dilations": [1, 2]},
    {"group": 4, "strides": [1, 2], "pads": [2, 1, 2, 1]},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS)
@pytest.mark.parametrize("windows", [1, 1 << 24])
def test_conv_agrees_with_pytorch(
    settings: dict[str, Any], windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "MAX_UNFOLDED", windows)  # one image at a time, or all at once
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator)
        for shape in ((3, 4, 7, 9), (8, 4 // settings["group"], 3, 2), (8,))
    )
    expected = F.conv2d(
        x.double(), weight.double(), bias.double(), settings["strides"], settings["pads"][:2],
        settings.get("dilations", 1), settings["group"],
    )  # fmt: skip
    found = run(ops.Conv, x.numpy(), weight.numpy(), bias.numpy(), **settings)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    half = run(ops.Conv, *(t.half().numpy() for t in (x, weight)), **settings)
    exact = F.conv2d(
        x.half().double(), weight.half().double(), None, settings["strides"], settings["pads"][:2],
        settings.get("dilations", 1), settings["group"],
    )  # fmt: skip
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, exact.numpy(), rtol=2.0**-11, atol=1e-5)  # rounded once, from float32


def test_conv_1d() -> None:
    x, weight = torch.randn(2, 3, 9), torch.randn(5, 3, 3)
    found = run(ops.Conv, x.numpy(), weight.numpy(), pads=[1, 1], group=1)
    np.testing.assert_allclose(found, F.conv1d(x, weight, padding=1).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_auto_pad_agrees_with_evaluator(auto_pad: str, kernel: int, stride: int) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 5)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((3, 2, kernel, kernel)).astype(np.float32)
    settings: dict[str, Any] = {"auto_pad": auto_pad, "strides": [stride, stride]}
    stock = run(None, x, weight, **settings)
    np.testing.assert_allclose(run(ops.Conv, x, weight, **settings), stock, rtol=1e-4, atol=1e-5)


def test_average_pool_agrees_with_pytorch() -> None:
    x = torch.rand(2, 3, 7, 6)
    cases = list(itertools.product((2, 3), (1, 2, 3), (0, 1), (0, 1), (0, 1)))
    for kernel, stride, pad, ceil, count in cases:
        expected = F.avg_pool2d(x, kernel, stride, pad, bool(ceil), bool(count)).numpy()
        found = run(
            ops.AveragePool, x.numpy(), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
            ceil_mode=ceil, count_include_pad=count,
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def run(operator: Any, *inputs: Any, **attributes: Any) -> Any:
    """Run one node in the evaluator, with an operator of ours or (None) its own Conv."""
    kind = helper.np_dtype_to_tensor_dtype(inputs[0].dtype)
    names = [f"x{i}" for i in range(len(inputs))]
    node = helper.make_node(operator.__name__ if operator else "Conv", names, ["y"], **attributes)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "one", [info(n, kind, x.shape) for n, x in zip(names, inputs, strict=True)],
        [info("y", kind, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    own = [operator] if operator else []
    outputs: Any = onnx.reference.ReferenceEvaluator(model, new_ops=own).run(
        None, dict(zip(names, inputs, strict=True))
    )
    return outputs[0]


def test_precision_is_read_from_the_graph(trained: Path, halves: dict[str, Path]) -> None:
    model = onnx.load(trained / "model.onnx")
    model.metadata_props.add(key="robust_export.precision", value='"int8"')
    assert model_precision(model) == "fp32"
    for name, file in halves.items():
        assert model_precision(onnx.load(file)) == name
        assert ReferenceClassifier(file).precision == name
    model.graph.node.add(op_type="DequantizeLinear")
    assert model_precision(model) == "int8"


@pytest.mark.skipif(not X86, reason="other processors may have half precision")
def test_ort_reports_fallback_to_fp32(trained: Path, halves: dict[str, Path]) -> None:
    assert not OnnxRuntimeClassifier(trained / "model.onnx").falls_back_to_fp32
    half = OnnxRuntimeClassifier(halves["fp16"])
    assert half.precision == "fp16"
    assert half.falls_back_to_fp32
    with pytest.raises(ArtifactError, match=r"has no bf16 arithmetic .*--runtime reference"):
        OnnxRuntimeClassifier(halves["bf16"])


@pytest.mark.parametrize(
    ("precision", "operator", "formats", "expected"),
    [
        ("int8", "QLinearConv", ["uint8"], True),
        ("int8", "Conv", ["float"], False),
        ("fp16", "FusedConv", ["float16"], True),
        ("fp16", "Conv", ["float"], False),
        ("fp16", "Cast", ["float16"], False),
        ("bf16", "Gemm", ["bfloat16"], True),
    ],
)
def test_ran_in_precision(precision: str, operator: str, formats: list[str], expected: bool) -> None:
    event = {"args": {"op_name": operator, "input_type_shape": [{kind: [1, 2]} for kind in formats]}}
    assert ran_in_precision(precision, [event]) is expected


def test_overflow_raises_no_warning(tmp_path: Path) -> None:
    """Values beyond 65504 are infinite in float16, as on hardware."""
    model = parse_graph(
        """squares (float[N, 1, 1, 1] pixels) => (float[N, 1] logits) {
            large = Conv (pixels, weight)
            infinite = Conv (large, weight)
            logits = Flatten (infinite)
        }""",
        weight=[[[[3e4]]]],
    )  # fmt: skip
    onnx.save(cast_model(model, "fp16"), tmp_path / "m.onnx")
    assert np.isinf(ReferenceClassifier(tmp_path / "m.onnx")(np.ones((1, 1, 1, 1), np.float32))).all()


@pytest.mark.parametrize("content", [b"", b"not a protobuf"])
def test_invalid_file_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"m\.onnx"):
        ReferenceClassifier(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("operator", "shape", "message"),
    [("Flatten", ["N", 8], "expected one input"), ("NoSuchOperator", ["N", 3, 2, 2], "cannot load")],
)
def test_unsupported_model_raises(operator: str, shape: list[Any], message: str, tmp_path: Path) -> None:
    info, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])], "g", [info("x", kind, shape)],
        [info("y", kind, ["N", 12])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "unused")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=message):
        ReferenceClassifier(tmp_path / "m.onnx")


def test_imports_no_torch() -> None:
    code = "import sys, robust_export.runtimes.onnx_reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
