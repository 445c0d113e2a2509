"""Plans: arms, their recipes, and invalid plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robust_export.comparison.plan import Plan, load_plan, plan_from_options
from robust_export.comparison.runner import check_plan
from robust_export.errors import InvalidValue, RobustExportError, SpartaMismatch
from robust_export.recipe.schema import Recipe

LAYER: dict[str, Any] = {"model": {"image_size": 8}, "train": {"epochs": 3}}

PLAN = """
backbone = "r18"
dataset = "digits"
seeds = 3
epochs = 7
rates = [0.5, 1]

[train]
batch_size = 32

[[arms]]
activation = "relu"
train = {lr = 0.05}

[[arms]]
name = "frozen"
activation = "sparta-k1"
sparta = {freeze = true, gate = "bias"}
from = {backbone = "r34", dataset = "svhn", train = {epochs = 2}}
"""


def load(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return load_plan(path)


def test_arms_from_options() -> None:
    plan = plan_from_options("r18", ["relu", "sparta", "sparta-bias", "sparta-k5"], "digits", 4, LAYER)
    recipes = [plan.recipe(arm, seed) for seed, arm in enumerate(plan.arms)]
    assert [r.model.name for r in recipes] == ["r18_relu", "r18_sparta", "r18_sparta", "r18_sparta"]
    assert [(r.sparta.gate, r.sparta.kernel_size) for r in recipes] == [
        ("full", 3), ("full", 3), ("bias", 3), ("full", 5),
    ]  # fmt: skip
    assert [r.train.seed for r in recipes] == [0, 1, 2, 3]
    assert all((r.train.epochs, r.data.name, r.threat.eps) == (3, "digits", 0.15) for r in recipes)


@pytest.mark.parametrize(
    ("text", "backbone", "data"),
    [("r34", "r34", "digits"), ("r34:svhn", "r34", "svhn"), (":folder:a:b", "r18", "folder:a:b")],
)
def test_transfer_has_two_controls(text: str, backbone: str, data: str) -> None:
    plan = plan_from_options("r18", ["relu"], "digits", 2, LAYER, [text])
    learnt, random, bias = plan.arms[1:]
    for arm, gate in ((learnt, "full"), (random, "random"), (bias, "bias")):
        recipe = plan.recipe(arm, 1, Path("bundle"))
        assert (recipe.sparta.load, recipe.sparta.gate, recipe.sparta.freeze) == ("bundle", gate, True)
        assert (recipe.model.name, recipe.data.name) == ("r18_sparta", "digits")
        source = plan.source_recipe(arm, 1)
        assert (source.model.name, source.data.name) == (f"{backbone}_sparta", data)
        assert (source.sparta.load, source.sparta.gate, source.sparta.freeze) == ("", "full", False)
        assert source == plan.source_recipe(learnt, 1)  # one network for all three


def test_plan_file(tmp_path: Path) -> None:
    plan = load(tmp_path, PLAN)
    relu, frozen = plan.arms
    assert (plan.seeds, plan.rates, relu.name, frozen.name) == (3, (0.5, 1.0), "relu", "frozen")
    recipe = plan.recipe(relu, 2, rate=0.5)
    assert (recipe.train.lr, recipe.train.batch_size, recipe.train.epochs) == (0.025, 32, 7)
    assert (recipe.train.seed, recipe.model.image_size) == (2, 8)
    recipe = plan.recipe(frozen, 0, Path("x"))
    assert (recipe.sparta.kernel_size, recipe.sparta.freeze, recipe.sparta.gate) == (1, True, "bias")
    assert recipe.train.lr == 0.1
    source = plan.source_recipe(frozen, 2)
    assert (source.model.name, source.data.name, source.train.epochs) == ("r34_sparta", "svhn", 2)
    assert (source.sparta.kernel_size, source.sparta.gate, source.train.seed) == (1, "full", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds = 3", "arms is None; expected"),
        ("arms = 3", "arms is 3"),
        (PLAN.replace("seeds = 3", "seeds = 1"), "seeds is 1"),
        (PLAN.replace("seeds = 3", "seeds = 'x'"), "seeds is 'x'"),
        (PLAN.replace("rates = [0.5, 1]", "rates = [0]"), "rates is"),
        (PLAN.replace("rates = [0.5, 1]", "rates = ['x']"), "a list of numbers"),
        (PLAN.replace("seeds = 3", "sedes = 3"), "did you mean 'seeds'"),
        (PLAN.replace("name = \"frozen\"", "name = 'ReLU'"), "two arms are named 'relu'"),
        (PLAN.replace("dataset = \"digits\"", "", 1), "dataset is ''"),
        (PLAN.replace("freeze", "frieze"), "did you mean 'freeze'"),
        ('backbone="r18"\ndataset="digits"\n[[arms]]\nactivation="relu"', "the plan has 1 arm"),
        (PLAN.replace('from = {backbone', 'from = "x" #'), "from is 'x'"),
    ],
)  # fmt: skip
def test_invalid_plan(tmp_path: Path, text: str, words: str) -> None:
    def recipes() -> list[Recipe]:
        plan = load(tmp_path, text)
        return [plan.recipe(arm, 0) for arm in plan.arms]

    with pytest.raises(RobustExportError, match=words):
        recipes()


def test_one_activation() -> None:
    with pytest.raises(InvalidValue, match="two or more"):
        plan_from_options("r18", ["relu"], "digits", 5, {})


def test_check_plan_of_a_transfer() -> None:
    layer = LAYER | {"model": {"image_size": 8, "channels": [8, 8, 16, 16], "stem_width": 8}}
    check_plan(plan_from_options("r34", ["relu"], "digits", 2, layer, ["r18"]))
    plan = plan_from_options("r18", ["relu"], "digits", 2, layer, ["r18"])
    transfer = plan.arms[1]
    wide = replace(transfer.base, tables={**transfer.base.tables, "model": {"channels": [8, 8, 24, 24]}})
    with pytest.raises(SpartaMismatch, match=r"sparta from r18: .* lacks 24"):
        check_plan(replace(plan, arms=(plan.arms[0], replace(transfer, base=wide))))
