"""Errors for graphs that TensorRT refuses, in a subprocess that must survive them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from robust_export.errors import ArtifactError
from robust_export.export.tensorrt.engines import parse_network
from robust_export.export.tensorrt.graph import read_graph
from robust_export.runtimes.tensorrt.variants import Variant

REFUSALS = """
import json, sys
from pathlib import Path
from robust_export.errors import RobustExportError
from robust_export.export.tensorrt.engines import build_engine
messages = {}
for path in sys.argv[1:]:
    try:
        build_engine(Path(path), "fp32", variant="rtx", capability=(8, 9))
        messages[Path(path).stem] = "built"
    except RobustExportError as error:
        messages[Path(path).stem] = f"{type(error).__name__}: {error}"
print(json.dumps(messages))
"""

EXPECTED = {
    "intact": "^built$",
    "types": r"input 1 is of TensorRT's type 1, x of 0; expected all inputs of one type",
    "kernel": r"weight is \[6, 1, 4, 4\]; expected \[C, 1, k, k\] with k = 1, 3, 5 or 7",
    "channels": r"bias is \[6\], weight \[7, 1, 3, 3\]",
    "attribute": "channels is -3; expected 1 or more",
    "operator": "does not take .*Nonsense .*Plugin not found",
    "garbage": "cannot be read as an ONNX file",
    "text": "ONNX file",
}


def corrupt(model: onnx.ModelProto, how: str) -> None:
    """Corrupt the first Sparta node of a model, or its first Conv."""
    node = next(n for n in model.graph.node if n.op_type == "Sparta")
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    weight = numpy_helper.to_array(tensor)
    changed: dict[str, npt.NDArray[Any]] = {
        "types": weight.astype(np.float16),
        "kernel": np.zeros((len(weight), 1, 4, 4), np.float32),
        "channels": np.zeros((len(weight) + 1, *weight.shape[1:]), np.float32),
    }
    if how in changed:
        tensor.CopyFrom(numpy_helper.from_array(changed[how], tensor.name))
    if how == "attribute":
        next(a for a in node.attribute if a.name == "channels").i = -3
    if how == "operator":
        next(n for n in model.graph.node if n.op_type == "Conv").op_type = "Nonsense"


@pytest.fixture(scope="module")
def messages(
    trained: Path, rtx: Variant, plugin: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The error for each corrupted file, or "built"."""
    folder = tmp_path_factory.mktemp("corrupted")
    for how in EXPECTED:
        model = onnx.load(trained / "model.onnx")
        corrupt(model, how)
        content = {"garbage": bytes(range(256)), "text": b"hello, this is no ONNX file"}
        (folder / f"{how}.onnx").write_bytes(content.get(how, model.SerializeToString()))
    command = [sys.executable, "-c", REFUSALS, *(str(folder / f"{how}.onnx") for how in EXPECTED)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120)
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-2000:])
    result: dict[str, str] = json.loads(ran.stdout)
    return result


@pytest.mark.parametrize("how", EXPECTED)
def test_refused_graph_raises(messages: dict[str, str], how: str) -> None:
    assert re.search(EXPECTED[how], messages[how]), messages[how]
    if how != "intact":
        assert messages[how].startswith(("ArtifactError: ", "BuildRefused: "))


def test_failed_start_raises(trained: Path, rtx: Variant) -> None:
    def builder(logger: Any) -> None:
        logger.log(rtx.trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    failing = replace(rtx, trt=SimpleNamespace(Builder=builder, __version__="10.14"))
    with pytest.raises(ArtifactError, match=r"cannot start: CUDA initialization failure .*--flavor rtx"):
        parse_network(read_graph(trained / "model.onnx", "none"), "fp32", failing)
