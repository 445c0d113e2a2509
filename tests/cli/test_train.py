"""robust-export train and onnx: recipes, results, and the way to a verified artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robust_export.bundle import Bundle
from robust_export.cli.commands.train import complete_recipe
from robust_export.recipe.recipe_file import merge, parse, to_toml
from tests.cli.invoke import parse_json, run, succeed
from tests.conftest import TINY


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(parse(merge(TINY, {"train": {"epochs": 1}}))))
    return path


def test_train_onnx_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("train", "--recipe", recipe, "--eps", "0.2", "--seed", "7", "--json")
    assert result.exit_code == 0, result.output
    assert parse_json(result)["bundle"] == "exported/resnet10t_sparta"
    assert "epoch 1/1  loss" in result.stderr
    bundle = Bundle.open("resnet10t_sparta")
    assert bundle.threat.eps == 0.2
    assert bundle.recipe().train.seed == 7

    assert succeed("onnx", "--model", "resnet10t_sparta", "--opset", "19")["opset"] == 19
    assert Path("exported/resnet10t_sparta/model.onnx").is_file()

    report = succeed(
        "verify", "--model", "resnet10t_sparta", "--eps", "8/255", "--attacks", "apgd-ce", "--iterations", "1"
    )
    assert report["threat"]["eps"] == pytest.approx(8 / 255)
    assert report["artifacts"][0]["verdict"] == "pass"
    assert report["command"] == (
        "robust-export verify --model resnet10t_sparta --eps 8/255 --attacks apgd-ce --iterations 1 --json"
    )
    assert report == json.loads(Path("exported/resnet10t_sparta/verify.json").read_text())


def test_options_override_the_file_and_it_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('[train]\nepochs = 7\nlr = 0.05\n[data]\nname = "digits"\n')
    options: dict[str, dict[str, Any]] = {"data": {}, "train": {"epochs": 9}, "model": {"name": None}}
    recipe = complete_recipe(file, options)
    assert (recipe.train.epochs, recipe.train.lr, recipe.threat.eps) == (9, 0.05, 0.15)
    assert recipe.model.name == "r18_sparta"
    other = complete_recipe(None, {"data": {"name": "svhn"}})
    assert (other.data.name, other.train.lr, other.model.image_size) == ("svhn", 0.01, 32)


def test_unknown_recipe_key_gets_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("[train]\nepoch = 3\n")
    result = run("train", "--recipe", file)
    assert result.exit_code == 2
    assert "did you mean 'epochs'" in result.stderr
