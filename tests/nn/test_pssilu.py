"""PSSiLU and the research form of Sparta: their formulas, where they start, how they are built and learn."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from robust_export.errors import SpartaMismatch, UnsupportedModel
from robust_export.export.exporter import export_onnx
from robust_export.nn.initial_weights import load_initial_weights
from robust_export.nn.models import PixelClassifier, create_model
from robust_export.nn.pssilu import ParametricShiftedSiLU
from robust_export.nn.replace import replace_activations
from robust_export.nn.sites import find_sites
from robust_export.nn.sparta import Sparta, sparta_modules, sparta_silu
from robust_export.nn.sparta_file import load_sparta, save_sparta
from robust_export.recipe.schema import Train
from robust_export.training.optim import make_optimizer

TINY = {"channels": [8, 8, 16, 16], "stem_width": 8}


def network(activation: str, **options: object) -> PixelClassifier:
    torch.manual_seed(0)
    return create_model(f"resnet10t_{activation}", image_size=8, **TINY, **options)  # type: ignore[arg-type]


def test_pssilu_is_its_formula() -> None:
    layer = ParametricShiftedSiLU()
    x = torch.linspace(-6, 6, 41)
    torch.testing.assert_close(layer(x), F.silu(x))  # where it starts
    with torch.no_grad():
        layer.alpha.fill_(2.0)
        layer.beta.fill_(0.3)
    expected = [v * (1 / (1 + math.exp(-2 * v)) - 0.3) / 0.7 for v in x.double().tolist()]
    torch.testing.assert_close(layer(x), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_a_network_of_pssilu_has_one_a_width_and_they_learn_faster() -> None:
    model = network("pssilu")
    learnt = [m for m in model.modules() if isinstance(m, ParametricShiftedSiLU)]
    assert len(learnt) == len({s.widths[0] for s in find_sites(model.backbone)})
    sites = network("pssilu", share="site")
    assert len([m for m in sites.modules() if isinstance(m, ParametricShiftedSiLU)]) > len(learnt)
    optimizer = make_optimizer(model, Train(lr=0.1), 5.0)
    own = {id(p) for m in learnt for p in m.parameters()}
    (group,) = [g for g in optimizer.param_groups if {id(p) for p in g["params"]} & own]
    assert {id(p) for p in group["params"]} == own
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.0)


def test_pssilu_can_be_replaced_again_and_started_from_other_weights(tmp_path: Path) -> None:
    model = network("pssilu")
    sites = replace_activations(model.backbone, "relu", image_size=8)
    assert len(sites) == len(find_sites(network("relu").backbone))
    path = tmp_path / "relu.safetensors"
    from safetensors.torch import save_file

    save_file(network("relu").state_dict(), path)
    left = load_initial_weights(network("pssilu"), str(path))
    assert left
    assert all(name.endswith((".alpha", ".beta")) for name in left)


def test_pssilu_can_be_exported(tmp_path: Path) -> None:
    import onnxruntime

    model = network("pssilu").eval()
    path = export_onnx(model, tmp_path / "model.onnx", 8)
    pixels = torch.rand(2, 3, 8, 8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(pixels).detach(), rtol=1e-4, atol=1e-5)


# --- x * sigmoid(w (*) x + b) ---


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_silu_form_is_its_formula_and_starts_as_silu(kernel: int) -> None:
    layer = Sparta(3, kernel, "silu")
    x = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), F.silu(x))
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)))
        layer.bias.copy_(torch.randn(3, generator=torch.Generator().manual_seed(2)))
    reach = kernel // 2
    padded = F.pad(x.double(), (reach,) * 4)
    attention = layer.bias.detach().double()[None, :, None, None].repeat(2, 1, 6, 7)
    for i in range(kernel):
        for j in range(kernel):
            window = padded[:, :, i : i + 6, j : j + 7]
            attention += layer.weight.detach().double()[None, :, 0, i, j, None, None] * window
    expected = x.double() / (1 + torch.exp(-attention))
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert sparta_silu(x.half(), layer.weight, layer.bias).dtype == torch.float16


def test_the_silu_form_is_told_from_the_other(tmp_path: Path) -> None:
    silu, relu = network("sparta", form="silu"), network("sparta")
    assert all(gate.form == "silu" for gate in sparta_modules(silu).values())
    assert "form=silu" in repr(silu)
    assert "form" not in repr(relu)
    with pytest.raises(UnsupportedModel, match=r"form \"silu\".*sparta\.form"):
        export_onnx(silu, tmp_path / "model.onnx", 8)
    path = save_sparta(silu, tmp_path / "silu.safetensors")
    load_sparta(network("sparta", form="silu"), path)
    with pytest.raises(SpartaMismatch, match=r"has the form 'silu', the network needs 'relu'"):
        load_sparta(relu, path)
    with pytest.raises(SpartaMismatch, match=r"has the form 'relu', the network needs 'silu'"):
        load_sparta(silu, save_sparta(relu, tmp_path / "relu.safetensors"))
