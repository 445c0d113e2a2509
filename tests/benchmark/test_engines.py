"""Benchmark of TensorRT engines: what is built, compared and missing. TensorRT is replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from torch import nn

from robust_export.benchmark import engines
from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.errors import ArtifactError, InvalidValue, UnknownName
from robust_export.export.exporter import to_onnx
from robust_export.export.tensorrt.builder import Options
from robust_export.export.tensorrt.graph import Graph
from robust_export.nn.sparta import Sparta


class Classifier:
    def __init__(self, path: Path, *, facts: dict[str, Any]) -> None:
        self.calls: list[int] = []
        self.sparta_nodes = int(facts["nodes"])

    def __call__(self, pixels: Any) -> None:
        self.calls.append(-len(pixels))

    def compute(self, batch: int) -> None:
        assert self.calls[0] == -batch, "measured on a batch that it has run"
        self.calls.append(batch)

    def fused_nodes(self) -> int:
        return self.sparta_nodes


EXPORTED: dict[tuple[bool, int], bytes] = {}  # the network and its ReLU variant, by opset: exporting is slow


def exported(network: nn.Module, *shape: int, opset: int) -> onnx.ModelProto:
    key = (any(isinstance(module, Sparta) for module in network.modules()), opset)
    if key not in EXPORTED:
        EXPORTED[key] = to_onnx(network, *shape, opset=opset).SerializeToString()
    return onnx.load_from_string(EXPORTED[key])


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Graph, str, Options]]:
    """Replace TensorRT and the GPU; return what would be built."""
    built: list[tuple[Graph, str, Options]] = []

    def parse_network(graph: Graph, precision: str, variant: object) -> tuple[Graph, str]:
        if graph.plugin == "aot":
            raise ArtifactError("there is no NVRTC")
        return graph, precision

    def build_engines(
        parsed: tuple[Graph, str], capabilities: Sequence[object], options: Options
    ) -> Iterator[Any]:
        built.append((*parsed, options))

        class Engine:
            plan = b"a plan"

        yield Engine()

    monkeypatch.setattr(engines, "to_onnx", exported)
    monkeypatch.setattr(engines, "gpu_capability", lambda: (8, 9))
    monkeypatch.setattr(engines, "load_variant", lambda: None)
    monkeypatch.setattr(engines, "parse_network", parse_network)
    monkeypatch.setattr(engines, "build_engines", build_engines)
    monkeypatch.setattr(engines, "engine_facts", lambda parsed, *rest: {"nodes": len(parsed[0].sparta)})
    monkeypatch.setattr(engines, "TensorRTClassifier", Classifier)
    monkeypatch.setattr(engines, "machine", lambda device: {"gpu": device.type})
    monkeypatch.setattr(engines, "_compiled", lambda *given: lambda: None)
    return built


@pytest.mark.parametrize(("precision", "element"), [("fp32", 1), ("fp16", 10), ("bf16", 16)])
def test_compared_engines(
    trained: Path, graphs: list[tuple[Graph, str, Options]], precision: str, element: int
) -> None:
    result = engines.bench_engines(trained, precision=precision, batches=[1, 3], rounds=1)
    assert [g.plugin for g, *_ in graphs] == ["library", "none", "none"] * 2
    assert [o.batch.opt for *_, o in graphs] == [1, 1, 1, 3, 3, 3]
    assert {p for _, p, _ in graphs} == {precision}
    for graph, *_ in graphs:
        weights = {
            t.data_type for t in graph.model.graph.initializer if len(t.dims) == 4 and min(t.dims[:2]) > 1
        }
        assert weights == {element}
    kinds = [(len(g.sparta), sum(n.op_type == "Relu" for n in g.model.graph.node)) for g, *_ in graphs[:3]]
    nodes = kinds[0][0]
    assert kinds[0] == (nodes, 0)
    assert kinds[2] == (0, nodes)  # the ReLU variant has a ReLU for every Sparta node
    assert (result.fused_nodes, result.sparta_nodes) == (nodes, nodes)
    for comparison, batch in zip(result.comparisons, (1, 3), strict=True):
        assert comparison.baseline == "TensorRT, ReLU twin"
        assert comparison.facts["batch"] == batch
        assert set(comparison.timings) == {engines.PEERS[p] for p in ("plugin", "body", "relu", "compile")}
    assert result.missing == {"TensorRT, kernels in the engine": "there is no NVRTC"}


def test_relu_variant_has_the_same_weights(trained: Path, graphs: list[tuple[Graph, str, Options]]) -> None:
    engines.bench_engines(trained, batches=[2], against=["plugin", "relu"], rounds=1)
    sparta, relu = (graph.model.graph for graph, *_ in graphs)

    def convolutions(graph: onnx.GraphProto) -> list[bytes]:
        values = {t.name: t.raw_data for t in graph.initializer}
        return [values[n.input[1]] for n in graph.node if n.op_type == "Conv"]

    assert convolutions(sparta) == convolutions(relu)


def test_refused_settings(trained: Path, graphs: list[tuple[Graph, str, Options]]) -> None:
    with pytest.raises(InvalidValue, match=r"nothing to measure:\n.*there is no NVRTC"):
        engines.bench_engines(trained, against=["aot"], rounds=1)
    with pytest.raises(UnknownName, match="peer 'eager'"):
        engines.bench_engines(trained, against=["eager"])
    with pytest.raises(UnknownName, match="precision 'int8'"):
        engines.bench_engines(trained, precision="int8")
    with pytest.raises(InvalidValue, match="batch is 0"):
        engines.bench_engines(trained, batches=[0])


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--runtime", "tensorrt"], 1, "engines are measured on a GPU, but CUDA finds none"),
        (["--runtime", "tensorrt", "--threads", "2"], 2, "--threads need --runtime onnxruntime"),
        (["--precision", "fp16"], 2, "--precision needs --runtime tensorrt"),
    ],
)
def test_command_without_a_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, words: str
) -> None:
    monkeypatch.setattr(engines, "gpu_capability", lambda: None)
    result = CliRunner().invoke(cli, ["bench", "--model", str(bundle.path), *args])
    assert result.exit_code == code
    assert words in result.stderr


@pytest.mark.gpu
def test_on_a_gpu(bundle: Bundle) -> None:
    result = engines.bench_engines(bundle, batches=[8], rounds=2)
    assert result.fused_nodes == result.sparta_nodes > 0
    assert result.comparisons[0].timings["TensorRT, plugin library"].median > 0
