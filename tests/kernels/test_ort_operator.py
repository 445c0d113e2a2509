"""The ONNX Runtime operators ai.sparta::Sparta and SpartaBlocked, against the formula in float64."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from robust_export.nn.sparta import sparta

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SMALLEST = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}

Array = np.ndarray[Any, np.dtype[np.float32]]


def create_session(model: onnx.ModelProto, library: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def one_node(
    weight: Array, bias: Array, *, dtype: str = "float32", constant: bool = True, rank: int = 4,
    types: tuple[str, str] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """Return a model with one Sparta node of a type, between casts from and to float32."""
    kinds = [TYPES[name] for name in (dtype, *(types or (dtype, dtype)))]
    info = helper.make_tensor_value_info
    inputs = [info("x", TensorProto.FLOAT, [None] * rank)]
    initializers = []
    for name, value in (("w", weight), ("b", bias)):
        if constant:
            initializers.append(numpy_helper.from_array(value, name))
        else:
            inputs.append(info(name, TensorProto.FLOAT, list(value.shape)))
    nodes = [
        helper.make_node("Cast", [name], [f"{name}_"], to=kind)
        for name, kind in zip("xwb", kinds, strict=True)
    ]
    nodes += [
        helper.make_node(
            "Sparta", ["x_", "w_", "b_"], ["y_"], "the_node", domain="ai.sparta", channels=len(bias)
        ),
        helper.make_node("Cast", ["y_"], ["y"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "g", inputs, [info("y", TensorProto.FLOAT, None)], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.sparta", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def rounded(x: Array, dtype: str) -> torch.Tensor:
    return torch.from_numpy(x).to(getattr(torch, dtype)).double()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 3), c=st.integers(1, 40), h=st.integers(1, 20), w=st.integers(1, 40),
    k=st.sampled_from([1, 3, 5, 7]), dtype=st.sampled_from(list(TYPES)), constant=st.booleans(),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_random_shapes_agree_with_float64(
    built: Path, n: int, c: int, h: int, w: int, k: int, dtype: str, constant: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x, weight, bias = (
        random.normal(size=size).astype(np.float32) for size in ((n, c, h, w), (c, 1, k, k), (c,))
    )
    feeds = {"x": x} if constant else {"x": x, "w": weight, "b": bias}
    y = create_session(one_node(weight, bias, dtype=dtype, constant=constant), built).run(None, feeds)[0]
    expected = sparta(*(rounded(value, dtype) for value in (x, weight, bias))).numpy()
    assert y.shape == expected.shape
    # Half a unit in the last place of the result, and the float32 error of the preactivation.
    np.testing.assert_allclose(y, expected, rtol=EPSILON[dtype] / 2 + 3e-5, atol=SMALLEST[dtype])


def test_nan_and_infinity(library: Path) -> None:
    x = np.ones((1, 1, 7, 20), np.float32)
    x[0, 0, 3, 10] = np.nan
    x[0, 0, 0, 0] = np.inf
    model = one_node(np.full((1, 1, 3, 3), 0.1, np.float32), np.zeros(1, np.float32))
    y = create_session(model, library).run(None, {"x": x})[0]
    nan = np.zeros_like(x, bool)
    nan[0, 0, 2:5, 9:12] = True
    assert np.array_equal(np.isnan(y), nan)
    assert y[0, 0, 0, 0] == np.inf


def weights(c: int = 4, k: int = 3) -> tuple[Array, Array]:
    return np.zeros((c, 1, k, k), np.float32), np.zeros(c, np.float32)


@pytest.mark.parametrize(
    ("weight", "bias", "x", "message"),
    [
        (np.zeros((4, 1, 2, 2)), np.zeros(4), (1, 4, 5, 5), r"weight is \[4, 1, 2, 2\]; expected"),
        (np.zeros((4, 1, 9, 9)), np.zeros(4), (1, 4, 5, 5), r"k = 1, 3, 5 or 7"),
        (np.zeros((4, 1, 3, 5)), np.zeros(4), (1, 4, 5, 5), r"weight is \[4, 1, 3, 5\]"),
        (np.zeros((4, 2, 3, 3)), np.zeros(4), (1, 4, 5, 5), r"weight is \[4, 2, 3, 3\]"),
        (np.zeros((4, 9)), np.zeros(4), (1, 4, 5, 5), r"weight is \[4, 9\]"),
        (np.zeros((4, 1, 3, 3)), np.zeros(3), (1, 4, 5, 5), r"expected bias \[4\]"),
        (np.zeros((4, 1, 3, 3)), np.zeros((4, 1)), (1, 4, 5, 5), r"bias is \[4, 1\]"),
        (np.zeros((4, 1, 3, 3)), np.zeros(4), (1, 5, 5, 5), r"x is \[1, 5, 5, 5\].*4 channels"),
        (np.zeros((4, 1, 3, 3)), np.zeros(4), (1, 3, 5, 5), r"expected x \[N, 4, H, W\]"),
        (np.zeros((4, 1, 3, 3)), np.zeros(4), (4, 5, 5), r"x is \[4, 5, 5\]"),
        (np.zeros((4, 1, 3, 3)), np.zeros(4), (), r"x is \[\]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("constant", [True, False])
def test_invalid_model_error_names_the_node(
    library: Path, weight: Any, bias: Any, x: tuple[int, ...], message: str, constant: bool
) -> None:
    weight, bias = weight.astype(np.float32), bias.astype(np.float32)
    model = one_node(weight, bias, constant=constant, rank=len(x))
    feeds = {"x": np.zeros(x, np.float32)} | ({} if constant else {"w": weight, "b": bias})
    with pytest.raises(Exception, match=rf"(?s)the_node.*{message}"):
        create_session(model, library).run(None, feeds)


def test_mixed_types_raise(library: Path) -> None:
    model = one_node(*weights(), dtype="float32", types=("float16", "float32"))
    with pytest.raises(Exception, match=r"the_node|Sparta"):
        create_session(model, library)


def test_sessions_in_several_threads(library: Path) -> None:
    model = one_node(*(np.full_like(value, 0.3) for value in weights(20)))
    x = np.random.default_rng(0).normal(size=(2, 20, 16, 16)).astype(np.float32)
    results: list[Any] = []

    def work() -> None:
        session = create_session(model, library)
        for _ in range(5):
            results.append(session.run(None, {"x": x})[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("block", [0, 1, 4, 12, 32])
def test_invalid_block_raises(library: Path, block: int) -> None:
    model = one_node(*weights(16))
    node = next(n for n in model.graph.node if n.op_type == "Sparta")
    node.op_type = "SpartaBlocked"
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("block", block))
    with pytest.raises(Exception, match=rf"the_node.*block is {block}; expected 8 or 16"):
        create_session(model, library).run(None, {"x": np.zeros((1, 16, 2, 2), np.float32)})
