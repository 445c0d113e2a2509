"""Sparta in ONNX Runtime's blocked layout: the same numbers, or no such layout at all."""

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
from robust_export.nn.operator import DOMAIN, OPERATOR
from robust_export.nn.sparta import Sparta, sparta_modules
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.ort_blocked import BLOCKED, NCHWC, blocked_graph

CPU = ["CPUExecutionProvider"]


def gate(channels: int, kernel: int = 3) -> Sparta:
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
        self.a, self.b, self.c = gate(32), gate(32, 5), gate(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.first(x))
        y: Tensor = self.c(self.third(self.b(self.second(x))) + x)
        return y.mean((2, 3))


class Joined(nn.Module):
    """Two branches of other widths, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = conv(3, 16), conv(3, 32), conv(48, 16)
        self.a, self.b, self.c = gate(16), gate(32), gate(48)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.a(self.one(x)), self.b(self.two(x))], 1)
        y: Tensor = self.last(self.c(both))
        return y.mean((2, 3))


def chain(*modules: Any) -> nn.Module:
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Padded(nn.Module):
    """Zeros beside what Sparta reads, which a convolution would take as its own padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = conv(3, 16), gate(16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gate(nn.functional.pad(self.conv(x), (1, 1, 1, 1)))
        return y.mean((2, 3))


class Added(nn.Module):
    """An addition after Sparta, which a convolution would take into itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.gate = conv(3, 16), conv(3, 16), gate(16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gate(self.one(x)) + self.two(x)
        return y.mean((2, 3))


def normalised(channels: int) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(channels)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: chain(conv(3, 32), gate(32), conv(32, 16), gate(16)),
    "kernels": lambda: chain(conv(3, 16), gate(16, 1), conv(16, 16), gate(16, 5), conv(16, 16), gate(16, 7)),
    "residual": Residual,
    "joined": Joined,
    "depthwise": lambda: chain(conv(3, 32), conv(32, 32, groups=32), gate(32), conv(32, 16)),
    "24 channels": lambda: chain(conv(3, 24), gate(24), conv(24, 16), gate(16), conv(16, 24), gate(24)),
    "3 channels": lambda: chain(gate(3), conv(3, 5), gate(5)),
    "stride": lambda: chain(conv(3, 16, stride=2), gate(16), nn.MaxPool2d(2), gate(16), conv(16, 16)),
    "padded": Padded,
    "added": Added,
    "scaled": lambda: chain(conv(3, 16), gate(16), normalised(16), conv(16, 16), gate(16)),
    "rectified": lambda: chain(conv(3, 16), gate(16), nn.ReLU(), conv(16, 16), gate(16)),
    "zero gates": lambda: chain(conv(3, 16), Sparta(16), conv(16, 16), Sparta(16)),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = NETWORKS[request.param]()
    return module.eval()


def test_every_network_gives_the_numbers_that_pytorch_gives(
    library: Path, network: nn.Module, tmp_path: Path
) -> None:
    path = export_onnx(network, tmp_path / "m.onnx", 18)
    sites = len(sparta_modules(network))
    classifier = OnnxRuntimeClassifier(path, threads=2)
    x = torch.rand(5, 3, 18, 18)
    with torch.no_grad():
        expected = network.double()(x.double()).numpy()
    for batch in (5, 1):
        found = classifier(x[:batch].numpy())
        np.testing.assert_allclose(found, expected[:batch], rtol=1e-4, atol=1e-6)
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
    """Return the operators of the blocked graph; an empty list where there is none."""
    graph = blocked_graph(onnx.load(path), optimise(library))
    return [] if graph is None else [node.op_type for node in graph.graph.node]


@pytest.fixture(scope="module")
def blocks(built: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where ONNX Runtime keeps a network of ReLUs in planes: there is no other layout to test."""
    folder = tmp_path_factory.mktemp("blocks")
    path = export_onnx(chain(conv(3, 32), nn.ReLU(), conv(32, 32)), folder / "relu.onnx", 18)
    optimise(built)(path.read_bytes(), folder / "optimised.onnx")
    if not any(node.domain == NCHWC for node in onnx.load(folder / "optimised.onnx").graph.node):
        pytest.skip("ONNX Runtime has no blocked layout on this CPU")


@pytest.mark.usefixtures("blocks")
def test_nothing_is_reordered_within_a_resnet(library: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    twin = export_onnx(create_model("r18_relu"), tmp_path / "relu.onnx")
    optimise(library)(twin.read_bytes(), tmp_path / "optimised.onnx")
    plain = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    found = operators(export_onnx(create_model("r18_sparta"), tmp_path / "sparta.onnx"), library)
    assert found.count(BLOCKED) == 17
    assert OPERATOR not in found
    for reorder in ("ReorderInput", "ReorderOutput"):
        assert found.count(reorder) == plain.count(reorder) <= 1
    assert found.count("Add") == plain.count("Add") == 0  # the residual is added by the convolution


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("name", "stay"), [("padded", 0), ("added", 0), ("scaled", 1), ("rectified", 1)])
def test_what_was_fused_into_a_tracer_is_left_as_it_was(
    library: Path, tmp_path: Path, name: str, stay: int
) -> None:
    torch.manual_seed(0)
    path = export_onnx(NETWORKS[name]().eval(), tmp_path / "m.onnx", 18)
    found = operators(path, library)
    assert found.count(BLOCKED) == stay
    assert found.count(OPERATOR) == (1 if stay else 0)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", ["chain", "kernels", "residual", "joined", "depthwise", "stride"])
def test_every_gate_of_16_channels_stays_in_the_blocked_layout(
    library: Path, tmp_path: Path, name: str
) -> None:
    network = NETWORKS[name]().eval()
    found = operators(export_onnx(network, tmp_path / "m.onnx", 18), library)
    assert found.count(BLOCKED) == len(sparta_modules(network))
    assert "ReorderInput" not in found


CHANGES = ["weights", "bias", "fused", "other padding", "no padding", "another layout", "copied", "missing"]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("change", CHANGES)
def test_a_tracer_that_is_not_as_it_was_left(library: Path, tmp_path: Path, change: str) -> None:
    path = export_onnx(chain(conv(3, 16), gate(16), conv(16, 16), gate(16)), tmp_path / "m.onnx", 18)
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
    assert blocked_graph(onnx.load(path), tamper) is None  # the next in every attempt


def test_gates_that_are_no_initialisers_are_left_alone(library: Path) -> None:
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    node = onnx.helper.make_node(OPERATOR, ["x", "w", "b"], ["y"], domain=DOMAIN, channels=16)
    inputs = [info("x", kind, [1, 16, 4, 4]), info("w", kind, [16, 1, 3, 3]), info("b", kind, [16])]
    graph = onnx.helper.make_graph([node], "g", inputs, [info("y", kind, None)])
    assert blocked_graph(onnx.helper.make_model(graph), optimise(library)) is None
