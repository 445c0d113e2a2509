"""The form "silu" of Sparta, x * sigmoid(w (*) x + b): formula, files and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from robust_export.errors import SpartaMismatch, UnsupportedModel
from robust_export.export.exporter import export_onnx
from robust_export.nn.models import create_model
from robust_export.nn.pixel_classifier import PixelClassifier
from robust_export.nn.sparta import Sparta, sparta_modules, sparta_silu
from robust_export.nn.sparta_file import load_sparta, save_sparta


def network(**options: Any) -> PixelClassifier:
    """Return a small Sparta network with seeded weights."""
    torch.manual_seed(0)
    return create_model("resnet10t_sparta", image_size=8, channels=[8, 8, 16, 16], stem_width=8, **options)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_formula(kernel: int) -> None:
    layer = Sparta(3, kernel, "silu")
    x = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), F.silu(x))
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)))
        layer.bias.copy_(torch.randn(3, generator=torch.Generator().manual_seed(2)))
    padding = kernel // 2
    padded = F.pad(x.double(), (padding,) * 4)
    preactivation = layer.bias.detach().double()[None, :, None, None].repeat(2, 1, 6, 7)
    for i in range(kernel):
        for j in range(kernel):
            window = padded[:, :, i : i + 6, j : j + 7]
            preactivation += layer.weight.detach().double()[None, :, 0, i, j, None, None] * window
    expected = x.double() / (1 + torch.exp(-preactivation))
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert sparta_silu(x.half(), layer.weight, layer.bias).dtype == torch.float16


def test_form_of_network_and_file(tmp_path: Path) -> None:
    silu, relu = network(form="silu"), network()
    assert all(gate.form == "silu" for gate in sparta_modules(silu).values())
    assert "form=silu" in repr(silu)
    assert "form" not in repr(relu)
    with pytest.raises(UnsupportedModel, match=r"form \"silu\".*sparta\.form"):
        export_onnx(silu, tmp_path / "model.onnx", 8)
    path = save_sparta(silu, tmp_path / "silu.safetensors")
    load_sparta(network(form="silu"), path)
    with pytest.raises(SpartaMismatch, match=r"has the form 'silu', the network has 'relu'"):
        load_sparta(relu, path)
    with pytest.raises(SpartaMismatch, match=r"has the form 'relu', the network has 'silu'"):
        load_sparta(silu, save_sparta(relu, tmp_path / "relu.safetensors"))
