"""The recipe schema: eps, unknown names, wrong types, options of timm."""

from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from robust_export.errors import InvalidValue, UnknownName
from robust_export.recipe.recipe_file import (
    parse,
    to_tables,
    to_toml,
)
from robust_export.recipe.schema import (
    SECTIONS,
    Model,
    Recipe,
)

# --- eps ---


@pytest.mark.parametrize(
    ("norm", "given_eps", "eps"),
    [
        ("Linf", "8/255", 8 / 255), ("Linf", " 8 / 255 ", 8 / 255), ("Linf", "0.1", 0.1),
        ("Linf", "1e-3", 1e-3), ("Linf", 0.1, 0.1), ("Linf", 1, 1.0), ("Linf", 0, 0.0), ("L2", 3, 3.0),
        ("L2", "1/2", 0.5),
    ],
)  # fmt: skip
def test_eps_is_a_number_or_fraction(norm: str, given_eps: object, eps: float) -> None:
    threat = parse({"threat": {"norm": norm, "eps": given_eps}}).threat
    assert threat.eps == eps
    assert isinstance(threat.eps, float)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    "eps",
    [
        -0.1, -1, "-8/255", "abc", "", "8/0", "8//255", "nan", "inf", float("nan"), float("inf"),
        float("-inf"), True, False, [0.1], {"x": 1}, 10**400, "1e400",
    ],
    ids=lambda value: repr(value)[:12],
)  # fmt: skip
def test_invalid_eps_is_refused(norm: str, eps: object) -> None:
    with pytest.raises(InvalidValue, match="eps"):
        parse({"threat": {"norm": norm, "eps": eps}})


@pytest.mark.parametrize("eps", [1.001, 8, "9/8", 255])
def test_eps_in_grey_levels_is_refused(eps: object) -> None:
    with pytest.raises(InvalidValue, match=r"eps is .*8/255"):
        parse({"threat": {"eps": eps}})


# --- names and types ---


@pytest.mark.parametrize(
    ("document", "received", "nearest"),
    [
        ({"train": {"epoch": 3}}, "epoch", "epochs"),
        ({"trian": {"epochs": 3}}, "trian", "train"),
        ({"threat": {"epsilon": 0.1}}, "epsilon", "eps"),
        ({"verify": {"max_dorp": 0.1}}, "max_dorp", "max_drop"),
        ({"data": {"nmae": "digits"}}, "nmae", "name"),
        ({"sparta": {"kernel": 3}}, "kernel", "kernel_size"),
    ],
)
def test_unknown_name_suggests_nearest(
    document: dict[str, dict[str, Any]], received: str, nearest: str
) -> None:
    with pytest.raises(UnknownName) as caught:
        parse(document, "my.toml")
    assert repr(received) in str(caught.value)
    assert repr(nearest) in str(caught.value)
    assert "my.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "epochs", "ten"), ("train", "epochs", "10"), ("train", "epochs", 1.5),
        ("train", "epochs", 10.0), ("train", "epochs", 0), ("train", "epochs", -1), ("train", "epochs", True),
        ("train", "epochs", [1]), ("train", "seed", -1), ("train", "lr", 0), ("train", "lr", float("inf")),
        ("train", "ema", 1), ("train", "optimizer", "adam"), ("train", "channels_last", 1),
        ("data", "val_fraction", 0), ("data", "val_fraction", 1), ("data", "shift", -1),
        ("data", "flip", "yes"), ("data", "name", 3), ("threat", "norm", "linf"), ("attack", "steps", 2.0),
        ("attack", "step_size", 0), ("attack", "val_steps", 0), ("sparta", "kernel_size", 4),
        ("sparta", "share", "all"), ("model", "image_size", 3), ("model", "in_chans", 0),
        ("verify", "attacks", "square"), ("verify", "attacks", []), ("verify", "attacks", ["apgd"]),
        ("verify", "max_drop", 1), ("verify", "min_agreement", 1.1), ("verify", "max_gap", 0),
        ("model", "options", 3), ("model", "options", [1]),
    ],
)  # fmt: skip
def test_wrong_value_error_names_key(section: str, key: str, value: object) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse({section: {key: value}}, "my.toml")
    assert f"[{section}]" in str(caught.value)
    assert key in str(caught.value)
    assert "my.toml" in str(caught.value)


@pytest.mark.parametrize("value", [3, "x", [1], True])
def test_section_must_be_a_table(value: Any) -> None:
    with pytest.raises(InvalidValue, match="train"):
        parse({"train": value})


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_are_frozen(section: str) -> None:
    table = getattr(Recipe(), section)
    with pytest.raises(FrozenInstanceError):
        setattr(table, next(iter(to_tables(Recipe())[section])), "other")
    with pytest.raises(FrozenInstanceError):
        setattr(Recipe(), section, table)


def test_unknown_model_keys_are_timm_options() -> None:
    document = "[model]\nname = 'r_sparta'\nchannels = [16, 32]\nstem_width = 8\nnested = {a = [1], b = 'c'}"
    recipe = parse(tomllib.loads(document))
    options = {"channels": [16, 32], "stem_width": 8, "nested": {"a": [1], "b": "c"}}
    assert recipe.model == Model(name="r_sparta", options=options)
    assert to_tables(recipe)["model"]["channels"] == [16, 32]
    assert "options" not in to_tables(recipe)["model"]
    again = parse(tomllib.loads(to_toml(recipe)))
    assert again == recipe
    assert again.model.options["channels"] == [16, 32]
    assert parse({"model": {"options": {"channels": [16, 32]}}}).model.options == {"channels": [16, 32]}


def test_option_named_as_model_key_is_refused() -> None:
    """Written to TOML, the option would overwrite the key."""
    with pytest.raises((InvalidValue, UnknownName), match="name"):
        parse({"model": {"name": "r18_sparta", "options": {"name": "r34_sparta"}}})
