"""Building the network of a recipe, with the controls of the section [sparta]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robust_export.errors import BundleError
from robust_export.nn.build import build_model, find_sparta_file
from robust_export.nn.models import create_model
from robust_export.nn.sparta import sparta_modules
from robust_export.nn.sparta_file import save_sparta, sparta_table
from robust_export.recipe.schema import Model, SpartaOptions

NARROW: dict[str, Any] = {"channels": (4, 8, 12, 16)}  # of a ResNet's four stages, for speed


def test_build_model(tmp_path: Path) -> None:
    source = create_model("r18_sparta", image_size=8, kernel_size=1, **NARROW)
    with torch.no_grad():
        for gate in sparta_modules(source).values():
            gate.bias.fill_(0.5)
    path = save_sparta(source, tmp_path / "s.safetensors")
    options = {"channels": [4, 8, 12, 16]}  # a list, as TOML has it
    spec = Model(name="r34_sparta", image_size=8, in_chans=1, options=options)
    model = build_model(spec, SpartaOptions(kernel_size=1, load=str(path), freeze=True), 6)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 6)
    for gate in sparta_table(model).values():
        assert gate.kernel_size == 1
        assert (gate.bias == 0.5).all()
        assert not gate.weight.requires_grad


def test_random_gate_permutes_loaded_values(tmp_path: Path) -> None:
    source = create_model("r18_sparta", image_size=8, **NARROW)
    with torch.no_grad():
        for gate in sparta_modules(source).values():
            for parameter in gate.parameters():
                parameter.copy_(torch.rand(parameter.shape))
    path = save_sparta(source, tmp_path / "s.safetensors")
    spec = Model(name="r18_sparta", image_size=8, options={"channels": [4, 8, 12, 16]})
    options = SpartaOptions(load=str(path), gate="random")
    one, same, other = (sparta_table(build_model(spec, options, 10, seed)) for seed in (0, 0, 1))
    for key, gate in sparta_table(source).items():
        assert torch.equal(one[key].weight, same[key].weight)
        assert not torch.equal(one[key].weight, other[key].weight)
        assert not torch.equal(one[key].weight, gate.weight)
        assert torch.equal(one[key].weight.flatten().sort().values, gate.weight.flatten().sort().values)


def test_bias_gate_has_zero_frozen_weights() -> None:
    spec = Model(name="r18_sparta", image_size=8, options={"channels": [4, 8, 12, 16]})
    for gate in sparta_table(build_model(spec, SpartaOptions(gate="bias"), 10)).values():
        assert not gate.weight.any()
        assert not gate.weight.requires_grad
        assert gate.bias.requires_grad


def test_find_sparta_file(tmp_path: Path) -> None:
    assert find_sparta_file("a/b.safetensors") == Path("a/b.safetensors")
    with pytest.raises(BundleError, match="no bundle"):
        find_sparta_file(str(tmp_path / "missing"))
