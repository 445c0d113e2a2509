"""Sparta in ONNX Runtime's blocked layout gives the same numbers, or is not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from robust_export.export.exporter import export_onnx
from robust_export.nn.models import create_model
from robust_export.nn.onnx_operator import DOMAIN, OPERATOR
from robust_export.nn.sparta import Sparta, sparta_modules
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.ort_blocked import BLOCKED, NCHWC, blocked_graph

CPU = ["CPUExecutionProvider"]


def sparta(channels: int, kernel: int = 3) -> Sparta:
    module = Sparta(channels, kernel_size=kernel)
    with torch.no_grad():
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return module


def conv(inputs: int, outputs: int, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)


class Residual(nn.Module):
    """Sparta before and after an addition, as in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 32), conv(32, 32), conv(32, 32)
        self.a, self.b, self.c = sparta(32), sparta(32, 5), sparta(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.first(x))
        y: Tensor = self.c(self.third(self.b(self.second(x))) + x)
        return y.mean((2, 3))


class Joined(nn.Module):
    """Two branches of different widths, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = conv(3, 16), conv(3, 32), conv(48, 16)
        self.a, self.b, self.c = sparta(16), sparta(32), sparta(48)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.a(self.one(x)), self.b(self.two(x))], 1)
        y: Tensor = self.last(self.c(both))
        return y.mean((2, 3))


def chain(*modules: Any) -> nn.Module:
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Padded(nn.Module):
    """Zero padding before Sparta, which ONNX Runtime would fuse into a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sparta = conv(3, 16), sparta(16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.sparta(nn.functional.pad(self.conv(x), (1, 1, 1, 1)))
        return y.mean((2, 3))


class Added(nn.Module):
    """An addition after Sparta, which ONNX Runtime would fuse into a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.sparta = conv(3, 16), conv(3, 16), sparta(16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.sparta(self.one(x)) + self.two(x)
        return y.mean((2, 3))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(channels)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: chain(conv(3, 32), sparta(32), conv(32, 16), sparta(16)),
    "kernels": lambda: chain(
        conv(3, 16), sparta(16, 1), conv(16, 16), sparta(16, 5), conv(16, 16), sparta(16, 7)
    ),
    "residual": Residual,
    "joined": Joined,
    "depthwise": lambda: chain(conv(3, 32), conv(32, 32, groups=32), sparta(32), conv(32, 16)),
    "24 channels": lambda: chain(conv(3, 24), sparta(24), conv(24, 16), sparta(16), conv(16, 24), sparta(24)),
    "3 channels": lambda: chain(sparta(3), conv(3, 5), sparta(5)),
    "stride": lambda: chain(conv(3, 16, stride=2), sparta(16), nn.MaxPool2d(2), sparta(16), conv(16, 16)),
    "padded": Padded,
    "added": Added,
    "scaled": lambda: chain(conv(3, 16), sparta(16), batch_norm(16), conv(16, 16), sparta(16)),
    "rectified": lambda: chain(conv(3, 16), sparta(16), nn.ReLU(), conv(16, 16), sparta(16)),
    "zero weights": lambda: chain(conv(3, 16), Sparta(16), conv(16, 16), Sparta(16)),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = NETWORKS[request.param]()
    return module.eval()


def test_logits_equal_pytorch(library: Path, network: nn.Module, tmp_path: Path) -> None:
    path = export_onnx(network, tmp_path / "m.onnx", 18)
    sites = len(sparta_modules(network))
    classifier = OnnxRuntimeClassifier(path, threads=2)
    x = torch.rand(5, 3, 18, 18)
    with torch.no_grad():
        expected = network.double()(x.double()).numpy()
    for batch in (5, 1):
        logits = classifier(x[:batch].numpy())
        np.testing.assert_allclose(logits, expected[:batch], rtol=1e-4, atol=1e-6)
    assert classifier.fused_nodes() == sites


def optimise(library: Path) -> Callable[[bytes, Path], None]:
    def run(content: bytes, file: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(file)
        options.register_custom_ops_library(str(library))
        ort.InferenceSession(content, options, providers=CPU)

    return run


def operators(path: Path, library: Path) -> list[str]:
    """Return the operators of the blocked graph, [] if there is none."""
    graph = blocked_graph(onnx.load(path), optimise(library))
    return [] if graph is None else [node.op_type for node in graph.graph.node]


@pytest.fixture(scope="module")
def blocked_layout(built: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip the test if ONNX Runtime does not use the blocked layout for a network with ReLU."""
    folder = tmp_path_factory.mktemp("blocked")
    path = export_onnx(chain(conv(3, 32), nn.ReLU(), conv(32, 32)), folder / "relu.onnx", 18)
    optimise(built)(path.read_bytes(), folder / "optimised.onnx")
    if not any(node.domain == NCHWC for node in onnx.load(folder / "optimised.onnx").graph.node):
        pytest.skip("ONNX Runtime has no blocked layout on this CPU")


@pytest.mark.usefixtures("blocked_layout")
def test_resnet_has_no_inner_reorders(library: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    relu = export_onnx(create_model("r18_relu"), tmp_path / "relu.onnx")
    optimise(library)(relu.read_bytes(), tmp_path / "optimised.onnx")
    relu_operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    nodes = operators(export_onnx(create_model("r18_sparta"), tmp_path / "sparta.onnx"), library)
    assert nodes.count(BLOCKED) == 17
    assert OPERATOR not in nodes
    for reorder in ("ReorderInput", "ReorderOutput"):
        assert nodes.count(reorder) == relu_operators.count(reorder) <= 1
    assert nodes.count("Add") == relu_operators.count("Add") == 0  # the convolution adds the residual


@pytest.mark.usefixtures("blocked_layout")
@pytest.mark.parametrize(("name", "blocked"), [("padded", 0), ("added", 0), ("scaled", 1), ("rectified", 1)])
def test_site_with_fused_tracer_keeps_sparta(library: Path, tmp_path: Path, name: str, blocked: int) -> None:
    torch.manual_seed(0)
    path = export_onnx(NETWORKS[name]().eval(), tmp_path / "m.onnx", 18)
    nodes = operators(path, library)
    assert nodes.count(BLOCKED) == blocked
    assert nodes.count(OPERATOR) == (1 if blocked else 0)


@pytest.mark.usefixtures("blocked_layout")
@pytest.mark.parametrize("name", ["chain", "kernels", "residual", "joined", "depthwise", "stride"])
def test_16_channels_use_the_blocked_layout(library: Path, tmp_path: Path, name: str) -> None:
    network = NETWORKS[name]().eval()
    nodes = operators(export_onnx(network, tmp_path / "m.onnx", 18), library)
    assert nodes.count(BLOCKED) == len(sparta_modules(network))
    assert "ReorderInput" not in nodes


CHANGES = ["weights", "bias", "fused", "other padding", "no padding", "another layout", "copied", "missing"]


@pytest.mark.usefixtures("blocked_layout")
@pytest.mark.parametrize("change", CHANGES)
def test_changed_tracer_is_not_replaced(library: Path, tmp_path: Path, change: str) -> None:
    path = export_onnx(chain(conv(3, 16), sparta(16), conv(16, 16), sparta(16)), tmp_path / "m.onnx", 18)
    run = optimise(library)

    def tamper(content: bytes, file: Path) -> None:
        run(content, file)
        model = onnx.load(file)
        node = next(n for n in model.graph.node if any(a.name == "group" and a.i == 16 for a in n.attribute))
        values = {i.name: i for i in model.graph.initializer}
        attributes = {a.name: a for a in node.attribute}
        if change == "missing":
            model.graph.node.remove(node)
        elif change == "fused":
            node.attribute.append(onnx.helper.make_attribute("activation", "Relu"))
        elif change == "other padding":
            attributes["pads"].ints[0] = 0
        elif change == "no padding":
            node.attribute.remove(attributes["pads"])
        elif change == "another layout":
            node.domain, node.op_type = "com.microsoft", "NhwcFusedConv"
        elif change == "copied":
            copy = model.graph.node.add()
            copy.CopyFrom(node)
            copy.output[0] = "copy"
        else:
            tensor = values[node.input[1 if change == "weights" else 2]]
            array = onnx.numpy_helper.to_array(tensor).copy()
            array.flat[-1] += 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(model, file)

    assert blocked_graph(onnx.load(path), run) is not None
    assert blocked_graph(onnx.load(path), tamper) is None  # every attempt changes the next tracer


def test_weights_as_inputs_are_not_traced(library: Path) -> None:
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    node = onnx.helper.make_node(OPERATOR, ["x", "w", "b"], ["y"], domain=DOMAIN, channels=16)
    inputs = [info("x", kind, [1, 16, 4, 4]), info("w", kind, [16, 1, 3, 3]), info("b", kind, [16])]
    graph = onnx.helper.make_graph([node], "g", inputs, [info("y", kind, None)])
    assert blocked_graph(onnx.helper.make_model(graph), optimise(library)) is None


def test_refused_graph_is_reported_once(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The classifier runs without the blocked layout, and logs the reason once."""
    path = export_onnx(chain(conv(3, 16), sparta(16)), tmp_path / "m.onnx", 18)

    def refuse(model: onnx.ModelProto, optimise: Callable[[bytes, Path], None]) -> None:
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        changed.graph.node[0].op_type = "NoSuchOperator"
        optimise(changed.SerializeToString(), tmp_path / "optimised.onnx")

    monkeypatch.setattr("robust_export.runtimes.ort_blocked.blocked_graph", refuse)
    classifier = OnnxRuntimeClassifier(path)
    assert classifier.fused_nodes() == 1  # starts a second session
    [record] = [r for r in caplog.records if r.name == "robust_export.runtimes.onnxruntime"]
    assert "m.onnx runs slower, not in ONNX Runtime's blocked layout" in record.message
    assert "NoSuchOperator" in record.message


def test_unexpected_error_propagates(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export_onnx(chain(conv(3, 16), sparta(16)), tmp_path / "m.onnx", 18)

    def fail(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("robust_export.runtimes.ort_blocked.blocked_graph", fail)
    with pytest.raises(KeyError, match="a bug"):
        OnnxRuntimeClassifier(path)
