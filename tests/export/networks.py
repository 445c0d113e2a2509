"""Small networks for the tests of the export, and ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx.reference
import timm
import torch
from torch import nn

from robust_export.export.function_body import add_sparta_function
from robust_export.nn.models import create_model
from robust_export.nn.pixel_classifier import PixelClassifier
from robust_export.nn.replace import replace_activations
from robust_export.nn.sparta import sparta_modules


def random_gates(network: nn.Module, std: float) -> None:
    """Give every gate random weights, since those of a new network are 0."""
    for gate in sparta_modules(network).values():
        nn.init.normal_(gate.weight, std=std)
        nn.init.normal_(gate.bias, std=std)


def tiny_resnet() -> PixelClassifier:
    """Return a ResNet with 11 Sparta activations of 3 widths; always the same weights."""
    torch.manual_seed(0)
    model = create_model("resnet10t_sparta", 5, 16, channels=[8, 8, 16, 16], stem_width=8).eval()
    random_gates(model, 0.5)
    return model


def shallow(name: str) -> PixelClassifier:
    """Return a timm network with few blocks, 5 classes and Sparta activations."""
    torch.manual_seed(0)
    backbone: nn.Module
    if name == "mobilenetv3_small_050":
        whole: Any = timm.create_model(name)
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Hardswish(), nn.Linear(24, 5)]
        backbone = nn.Sequential(whole.conv_stem, whole.bn1, *whole.blocks[:3], *head)
    else:
        backbone = timm.create_model(name, num_classes=5, depths=(1, 1, 1, 1))
    replace_activations(backbone.eval(), image_size=32)
    random_gates(backbone, 0.1)
    return PixelClassifier(
        name, backbone, [0.5] * 3, [0.25] * 3, num_classes=5, image_size=32, in_chans=3
    ).eval()


def parse_graph(text: str, opset: int = 22, **initializers: object) -> onnx.ModelProto:
    """Return a model of ONNX's textual graph, with float32 initialisers and Sparta's function body."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    for name, value in initializers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
    add_sparta_function(model)
    return model


def evaluate(model: onnx.ModelProto, inputs: dict[str, Any]) -> npt.NDArray[Any]:
    """Run a model in ONNX's reference evaluator, which shares no code with any runtime."""
    (output,) = onnx.reference.ReferenceEvaluator(model).run(None, inputs)
    assert isinstance(output, np.ndarray)
    return output
