"""Benchmark of one Sparta node: the fused kernel in both memory layouts, and the function body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from robust_export.benchmark.memory import copy_bandwidth
from robust_export.benchmark.networks import Shape
from robust_export.benchmark.results import Comparison
from robust_export.errors import BuildError
from robust_export.export.function_body import add_sparta_function
from robust_export.kernels.libraries import ort_library, why_no_ort_library
from robust_export.nn.onnx_operator import DOMAIN, OPERATOR
from robust_export.runtimes.ort_blocked import BLOCKED
from robust_export.utils.timing import Call, measure

FUNCTION_BODY, FUSED_NCHW, FUSED_BLOCKED = "function body", "fused kernel", "fused kernel, blocked layout"
BLOCK = 16  # channels


def bench_operator(
    shapes: Sequence[Shape], *, threads: int = 1, kernel_size: int = 3, rounds: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> list[Comparison]:  # fmt: skip
    """Measure one Sparta node, from memory to memory, on feature maps of each shape.

    The facts of a comparison have the bytes that must be moved (x once, y once), and the bandwidth of a large
    copy.

    Raises:
        BuildError: if the fused kernel is not built.
    """
    library = ort_library()
    if library is None:
        raise BuildError(why_no_ort_library())
    bandwidth = copy_bandwidth(threads)
    comparisons = []
    for shape in shapes:
        say(f"{list(shape)}, {threads} thread{'s' if threads > 1 else ''}")
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        node = _model(shape[1], kernel_size, OPERATOR)
        calls = {
            FUNCTION_BODY: _call(node, x, threads, None), FUSED_NCHW: _call(node, x, threads, library),
        }  # fmt: skip
        if shape[1] % BLOCK == 0:
            calls[FUSED_BLOCKED] = _call(_model(shape[1], kernel_size, BLOCKED), x, threads, library)
        facts = {
            "shape": list(shape), "bytes": 2 * x.nbytes, "copy_bandwidth": bandwidth,
            "copy_seconds": 2 * x.nbytes / bandwidth,
        }  # fmt: skip
        timings = measure(calls, rounds=rounds, min_time=0.03)
        comparisons.append(Comparison(f"Sparta alone: {list(shape)}", threads, FUNCTION_BODY, timings, facts))
    return comparisons


def _model(channels: int, kernel_size: int, operator: str) -> onnx.ModelProto:
    """Return a model of one node, with the function body if the operator has one."""
    random = np.random.default_rng(1)
    weight = random.normal(size=(channels, 1, kernel_size, kernel_size)).astype(np.float32) / kernel_size
    bias = random.normal(size=channels).astype(np.float32)
    attributes: dict[str, Any] = {"channels": channels} if operator == OPERATOR else {"block": BLOCK}
    node = helper.make_node(operator, ["x", "w", "b"], ["y"], "sparta", domain=DOMAIN, **attributes)
    info, shape = helper.make_tensor_value_info, ("N", channels, "H", "W")
    graph = helper.make_graph(
        [node], "operator", [info("x", TensorProto.FLOAT, shape)], [info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if operator == OPERATOR:
        add_sparta_function(model)
    return model


def _call(model: onnx.ModelProto, x: np.ndarray[Any, Any], threads: int, library: object | None) -> Call:
    """Return a call that runs the model from one buffer into another without copying."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    buffers = ort.OrtValue.ortvalue_from_numpy(x), ort.OrtValue.ortvalue_from_numpy(np.empty_like(x))
    binding.bind_ortvalue_input("x", buffers[0])
    binding.bind_ortvalue_output("y", buffers[1])

    def run(keep_alive: object = buffers) -> None:  # noqa: ARG001 (the binding holds no reference)
        session.run_with_iobinding(binding)

    return run
