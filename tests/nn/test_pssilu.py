"""PSSiLU: formula, sharing, learning rate, initial weights and export."""

from __future__ import annotations

import math
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from robust_export.export.exporter import export_onnx
from robust_export.nn.initial_weights import load_initial_weights
from robust_export.nn.models import create_model
from robust_export.nn.pixel_classifier import PixelClassifier
from robust_export.nn.pssilu import ParametricShiftedSiLU
from robust_export.nn.replace import replace_activations
from robust_export.nn.sites import find_sites
from robust_export.recipe.schema import Train
from robust_export.training.optim import make_optimizer

TINY = {"channels": [8, 8, 16, 16], "stem_width": 8}


def network(activation: str, **options: object) -> PixelClassifier:
    torch.manual_seed(0)
    return create_model(f"resnet10t_{activation}", image_size=8, **TINY, **options)  # type: ignore[arg-type]


def test_formula() -> None:
    layer = ParametricShiftedSiLU()
    x = torch.linspace(-6, 6, 41)
    torch.testing.assert_close(layer(x), F.silu(x))  # its initial values
    with torch.no_grad():
        layer.alpha.fill_(2.0)
        layer.beta.fill_(0.3)
    expected = [v * (1 / (1 + math.exp(-2 * v)) - 0.3) / 0.7 for v in x.double().tolist()]
    torch.testing.assert_close(layer(x), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_sharing_and_learning_rate() -> None:
    model = network("pssilu")
    learnable = [m for m in model.modules() if isinstance(m, ParametricShiftedSiLU)]
    assert len(learnable) == len({s.widths[0] for s in find_sites(model.backbone)})
    sites = network("pssilu", share="site")
    assert len([m for m in sites.modules() if isinstance(m, ParametricShiftedSiLU)]) > len(learnable)
    optimizer = make_optimizer(model, Train(lr=0.1), 5.0)
    own = {id(p) for m in learnable for p in m.parameters()}
    (group,) = [g for g in optimizer.param_groups if {id(p) for p in g["params"]} & own]
    assert {id(p) for p in group["params"]} == own
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.0)


def test_replacement_and_initial_weights(tmp_path: Path) -> None:
    model = network("pssilu")
    sites = replace_activations(model.backbone, "relu", image_size=8)
    assert len(sites) == len(find_sites(network("relu").backbone))
    path = tmp_path / "relu.safetensors"
    save_file(network("relu").state_dict(), path)
    remaining = load_initial_weights(network("pssilu"), str(path))
    assert remaining
    assert all(name.endswith((".alpha", ".beta")) for name in remaining)


def test_export(tmp_path: Path) -> None:
    model = network("pssilu").eval()
    path = export_onnx(model, tmp_path / "model.onnx", 8)
    pixels = torch.rand(2, 3, 8, 8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(pixels).detach(), rtol=1e-4, atol=1e-5)
