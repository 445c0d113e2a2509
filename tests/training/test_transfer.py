"""A Sparta function learnt on one network and data set, in another; and what is recorded of it."""

from __future__ import annotations

import hashlib
import json
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
from robust_export.nn.sparta_file import sparta_table
from robust_export.recipe.recipe_file import to_toml
from robust_export.recipe.schema import Model, SpartaOptions
from robust_export.training.run import train
from tests.conftest import tiny_recipe
from tests.data.sample_data import write_folder

OPTIONS: dict[str, Any] = {"channels": [8, 8, 16, 16], "stem_width": 8}


def table(module: torch.nn.Module) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": tensor.detach()
        for key, gate in sparta_table(module).items()
        for name, tensor in gate.named_parameters()
    }


def started(load: Path, backbone: str = "resnet10t", **options: Any) -> dict[str, Tensor]:
    """Return the gates that a network starts from."""
    spec = Model(f"{backbone}_sparta", image_size=8, options=OPTIONS)
    return table(build_model(spec, SpartaOptions(load=str(load), **options), 10, seed=1))


def test_another_backbone_and_data_set(trained: Path, tmp_path: Path) -> None:
    """By the command line: frozen gates stay to the bit, and the manifest says whose they are."""
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
    digest = hashlib.sha256((trained / "sparta.safetensors").read_bytes()).hexdigest()
    data = Bundle.open(trained).manifest["provenance"]["data"]
    assert facts == {
        "bundle": "tiny", "model": "resnet10t_sparta", "data": data, "sha256": digest, "frozen": True,
        "gate": "full",
    }  # fmt: skip


def test_without_freezing_it_learns_on(trained: Path, tmp_path: Path) -> None:
    load = {"load": str(trained / "sparta.safetensors")}
    change: dict[str, Any] = {"sparta": load, "train": {"epochs": 1}}
    bundle = train(tiny_recipe(**change), tmp_path / "run", device="cpu")
    source, found = (load_file(folder / "sparta.safetensors") for folder in (trained, bundle.path))
    assert not any(torch.equal(found[name], source[name]) for name in found)
    assert bundle.manifest["provenance"]["sparta_from"]["frozen"] is False


def test_a_run_that_goes_on_keeps_what_it_recorded(trained: Path, tmp_path: Path) -> None:
    change: dict[str, Any] = {"sparta": {"load": str(trained)}, "train": {"epochs": 1}}
    bundle = train(tiny_recipe(**change), tmp_path / "run", device="cpu")
    last = json.loads((bundle.path / "checkpoints/last.json").read_text())
    assert last["sparta_from"] == bundle.manifest["provenance"]["sparta_from"]


def test_the_random_control_has_the_same_values_elsewhere(trained: Path) -> None:
    learnt, random = started(trained), started(trained, gate="random")
    for name, tensor in learnt.items():
        assert not torch.equal(random[name], tensor)
        assert torch.equal(random[name].flatten().sort()[0], tensor.flatten().sort()[0])
    again = started(trained, gate="random")
    assert all(torch.equal(again[name], random[name]) for name in random)


def test_the_bias_only_control_has_no_weights_and_learns_none(trained: Path, tmp_path: Path) -> None:
    learnt, bias = started(trained), started(trained, gate="bias")
    for name, tensor in bias.items():
        assert (tensor == 0).all() if name.endswith("weight") else torch.equal(tensor, learnt[name])
    change: dict[str, Any] = {"sparta": {"gate": "bias"}, "train": {"epochs": 1, "awp": 0.01}}
    bundle = train(tiny_recipe(**change), tmp_path / "run", device="cpu")
    found = load_file(bundle.path / "sparta.safetensors")
    assert all((found[n] == 0).all() == n.endswith("weight") for n in found)


def test_what_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SpartaMismatch, match=r"lacks 64, 128, 256, 512"):
        build_model(Model("r18_sparta", image_size=8), SpartaOptions(load=str(trained)), 10)
    with pytest.raises(BundleError, match="no bundle at"):
        started(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is unfinished"):
        started(tmp_path)
    content = load_file(trained / "sparta.safetensors")
    save_file({name: t + 1 for name, t in content.items()}, tmp_path / "other.safetensors")
    with pytest.raises(SpartaMismatch, match="not a Sparta function"):
        started(tmp_path / "other.safetensors")
