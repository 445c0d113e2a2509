"""Sparta functions loaded into other networks, and the manifest's record of their origin."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.errors import BundleError, SpartaMismatch
from robust_export.nn.build import build_model
from robust_export.nn.load import load
from robust_export.nn.sparta import sparta_modules
from robust_export.nn.sparta_file import save_sparta, sparta_table
from robust_export.recipe.recipe_file import to_toml
from robust_export.recipe.schema import Model, SpartaOptions
from robust_export.training.run import train
from robust_export.utils.files import sha256
from tests.conftest import tiny_recipe
from tests.data.sample_data import write_folder
from tests.training.trainers import before_step, interrupt, quick_recipe

OPTIONS: dict[str, Any] = {"channels": [8, 8, 16, 16], "stem_width": 8}


def parameters_by_width(module: torch.nn.Module) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": tensor.detach()
        for key, gate in sparta_table(module).items()
        for name, tensor in gate.named_parameters()
    }


def initial_gates(load: Path, backbone: str = "resnet10t", **options: Any) -> dict[str, Tensor]:
    """Return the gates of a network that loads a Sparta function."""
    spec = Model(f"{backbone}_sparta", image_size=8, options=OPTIONS)
    return parameters_by_width(build_model(spec, SpartaOptions(load=str(load), **options), 10, seed=1))


def test_frozen_function_on_another_backbone_and_data_set(trained: Path, tmp_path: Path) -> None:
    """Frozen gates stay bit-identical, and the manifest records their origin."""
    write_folder(tmp_path / "data", {"a": 30, "b": 30})
    recipe = tiny_recipe(
        model={"name": "resnet18d_sparta"}, data={"name": f"folder:{tmp_path / 'data'}"},
        train={"epochs": 1, "batch_size": 16},
    )  # fmt: skip
    (tmp_path / "r.toml").write_text(to_toml(recipe))
    command = ["train", "--recipe", str(tmp_path / "r.toml"), "--out", str(tmp_path / "new")]
    command += ["--device", "cpu", "--sparta-from", str(trained), "--freeze-sparta"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    source = load_file(trained / "sparta.safetensors")
    found = load_file(tmp_path / "new/sparta.safetensors")
    assert found
    assert all(torch.equal(tensor, source[name]) for name, tensor in found.items())
    facts = Bundle.open(tmp_path / "new").manifest["provenance"]["sparta_from"]
    digest = sha256(trained / "sparta.safetensors")
    data = Bundle.open(trained).manifest["provenance"]["data"]
    assert facts == {
        "bundle": "tiny", "model": "resnet10t_sparta", "data": data, "sha256": digest, "frozen": True,
        "gate": "full",
    }  # fmt: skip


def test_function_is_trained_unless_frozen(images: Path, trained: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(images, sparta={"load": str(trained / "sparta.safetensors")})
    bundle = train(recipe, tmp_path / "run", device="cpu")
    source, found = (load_file(folder / "sparta.safetensors") for folder in (trained, bundle.path))
    assert not any(torch.equal(found[name], source[name]) for name in found)
    assert bundle.manifest["provenance"]["sparta_from"]["frozen"] is False


def test_resumed_run_keeps_the_recorded_origin(
    images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes between the interruption and the resumption: the digest is that of the loaded one."""
    file = shutil.copy(trained / "sparta.safetensors", tmp_path)
    digest = sha256(file)
    recipe = quick_recipe(images, sparta={"load": str(file)})
    with monkeypatch.context() as patch:
        before_step(patch, 7, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", device="cpu")
    network = load(trained)
    next(iter(sparta_modules(network).values())).bias.data.add_(1)
    save_sparta(network, file)
    assert sha256(file) != digest
    bundle = train(recipe, tmp_path / "run", device="cpu", resume=True)
    assert bundle.manifest["provenance"]["sparta_from"]["sha256"] == digest


def test_random_control_permutes_the_values(trained: Path) -> None:
    learnt, random = initial_gates(trained), initial_gates(trained, gate="random")
    for name, tensor in learnt.items():
        assert not torch.equal(random[name], tensor)
        assert torch.equal(random[name].flatten().sort()[0], tensor.flatten().sort()[0])
    again = initial_gates(trained, gate="random")
    assert all(torch.equal(again[name], random[name]) for name in random)


def test_bias_control_keeps_zero_weights(images: Path, trained: Path, tmp_path: Path) -> None:
    learnt, bias = initial_gates(trained), initial_gates(trained, gate="bias")
    for name, tensor in bias.items():
        assert (tensor == 0).all() if name.endswith("weight") else torch.equal(tensor, learnt[name])
    recipe = quick_recipe(images, sparta={"gate": "bias"}, train={"awp": 0.01})
    bundle = train(recipe, tmp_path / "run", device="cpu")
    found = load_file(bundle.path / "sparta.safetensors")
    assert all((found[n] == 0).all() == n.endswith("weight") for n in found)


def test_unsuitable_functions_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SpartaMismatch, match=r"lacks 64, 128, 256, 512"):
        build_model(Model("r18_sparta", image_size=8), SpartaOptions(load=str(trained)), 10)
    with pytest.raises(BundleError, match="no bundle at"):
        initial_gates(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is unfinished"):
        initial_gates(tmp_path)
    content = load_file(trained / "sparta.safetensors")
    save_file({name: t + 1 for name, t in content.items()}, tmp_path / "other.safetensors")
    with pytest.raises(SpartaMismatch, match="not a Sparta function"):
        initial_gates(tmp_path / "other.safetensors")
