"""The operator alone: the kernel in both layouts against the function body, for given planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from robust_export.benchmark.results import Run
from robust_export.errors import BuildError
from robust_export.export.function_body import add_sparta_function
from robust_export.kernels.libraries import ort_library, why_no_library
from robust_export.nn.operator import DOMAIN, OPERATOR
from robust_export.runtimes.ort_blocked import BLOCKED
from robust_export.utils.timing import Call, copy_bandwidth, measure

Shape = tuple[int, int, int, int]

BODY, PLANES, BLOCKS = "function body", "fused kernel", "fused kernel, blocked layout"
BLOCK = 16


def bench_operator(
    shapes: Sequence[Shape], *, threads: int = 1, kernel: int = 3, rounds: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> list[Run]:  # fmt: skip
    """Measure one Sparta node, from memory to memory, for each shape of x [N, C, H, W].

    A run's facts have the bytes that must move (x once, y once) and what a large copy moved in the same run.

    Raises:
        BuildError: if there is no fused kernel.
    """
    library = ort_library()
    if library is None:
        raise BuildError(why_no_library())
    bandwidth = copy_bandwidth(threads)
    runs = []
    for shape in shapes:
        say(f"{list(shape)}, {threads} thread{'s' if threads > 1 else ''}")
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        contestants = {
            BODY: _call(_model(shape[1], kernel, OPERATOR), x, threads, None),
            PLANES: _call(_model(shape[1], kernel, OPERATOR), x, threads, library),
        }
        if shape[1] % BLOCK == 0:
            contestants[BLOCKS] = _call(_model(shape[1], kernel, BLOCKED), x, threads, library)
        timings = measure(contestants, rounds=rounds, turn=0.03)
        facts = {
            "shape": list(shape), "bytes": 2 * x.nbytes, "copy_bandwidth": bandwidth,
            "copy_seconds": 2 * x.nbytes / bandwidth,
        }  # fmt: skip
        runs.append(Run(f"Sparta alone: {list(shape)}", threads, BODY, timings, facts))
    return runs


def _model(channels: int, kernel: int, operator: str) -> onnx.ModelProto:
    """Return a model of one node, with the function body where it has one."""
    random = np.random.default_rng(1)
    weight = random.normal(size=(channels, 1, kernel, kernel)).astype(np.float32) / kernel
    bias = random.normal(size=channels).astype(np.float32)
    attributes: dict[str, Any] = {"channels": channels} if operator == OPERATOR else {"block": BLOCK}
    node = helper.make_node(operator, ["x", "w", "b"], ["y"], "sparta", domain=DOMAIN, **attributes)
    info, free = helper.make_tensor_value_info, ("N", channels, "H", "W")
    graph = helper.make_graph(
        [node], "operator", [info("x", TensorProto.FLOAT, free)], [info("y", TensorProto.FLOAT, free)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if operator == OPERATOR:
        add_sparta_function(model)
    return model


def _call(model: onnx.ModelProto, x: np.ndarray[Any, Any], threads: int, library: object | None) -> Call:
    """Return a call that runs the model from one buffer into another, and copies nothing."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    values = ort.OrtValue.ortvalue_from_numpy(x), ort.OrtValue.ortvalue_from_numpy(np.empty_like(x))
    binding.bind_ortvalue_input("x", values[0])
    binding.bind_ortvalue_output("y", values[1])

    def run(keep: object = values) -> None:  # noqa: ARG001 (the binding does not keep them)
        session.run_with_iobinding(binding)

    return run
