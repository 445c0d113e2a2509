"""Recipe files: the defaults, round trips through TOML, merging, unreadable files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import robust_export
from robust_export.errors import InvalidValue
from robust_export.recipe.recipe_file import (
    Tables,
    default_recipe,
    differences,
    load_recipe,
    merge,
    parse,
    to_toml,
)
from robust_export.recipe.schema import (
    Attack,
    Data,
    Model,
    Recipe,
    SpartaOptions,
    Threat,
    Train,
    Verify,
)

RECIPES = sorted(Path(robust_export.__file__).parent.glob("recipe/defaults/*.toml"))


# --- default recipes ---


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_default_recipe_parses(path: Path) -> None:
    assert default_recipe(path.stem) == load_recipe(path) != {}
    recipe = parse(default_recipe(path.stem), path.name)
    assert recipe != Recipe()
    assert parse(tomllib.loads(to_toml(recipe))) == recipe


def test_each_data_set_has_a_default_recipe() -> None:
    stems = {path.stem for path in RECIPES}
    assert stems >= {"digits", "cifar10", "cifar100", "svhn", "folder", "demo"}


PUBLISHED = [path for path in RECIPES if "-" in path.stem]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_recipe_is_documented(path: Path, tmp_path: Path) -> None:
    tables = load_recipe(path.stem)
    assert tables == load_recipe(path)
    assert tables["data"]["name"] == path.stem.partition("-")[0]
    head = path.read_text().split("\n\n")[0]
    assert "Not run here" in head
    docs = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert f"`{path.stem}`" in docs
    for figure in re.findall(r"\d+\.\d+(?= %)", head):
        assert figure in docs


@pytest.mark.parametrize(
    ("data_set", "eps"), [("digits", 0.15), ("cifar10", 8 / 255), ("folder:/x:y", 4 / 255)]
)
def test_eps_of_default_recipe(data_set: str, eps: float) -> None:
    assert parse(default_recipe(data_set)).threat == Threat("Linf", eps)


def test_data_set_without_default_recipe() -> None:
    assert default_recipe("imagenet") == {}
    assert parse({}) == Recipe()


# --- round trip through TOML ---

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
above_zero = st.floats(1e-12, 1e6)
counts = st.integers(1, 2**62)
natural = st.integers(0, 2**62)
below_one = st.floats(0, 1, exclude_max=True)
leaf = st.one_of(text, st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False))
option = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
)
names = text.filter(lambda key: key not in Model.__dataclass_fields__)
recipes = st.builds(
    Recipe,
    model=st.builds(
        Model,
        name=text,
        image_size=st.integers(4, 4096),
        init=text,
        options=st.dictionaries(names, option, max_size=3),
    ),
    sparta=st.builds(
        SpartaOptions, share=st.sampled_from(["width", "site"]), lr_multiple=above_zero, load=text
    ),
    data=st.builds(
        Data, name=text, dir=text, val_fraction=st.floats(1e-9, 0.999), shift=natural, flip=st.booleans()
    ),
    threat=st.one_of(
        st.builds(Threat, norm=st.just("Linf"), eps=st.floats(0, 1)),
        st.builds(Threat, norm=st.just("L2"), eps=st.floats(0, 1000)),
    ),
    attack=st.builds(Attack, steps=natural, step_size=above_zero, random_start=st.booleans()),
    train=st.builds(Train, epochs=counts, lr=above_zero, ema=below_one, seed=natural, warmup=below_one),
    verify=st.builds(
        Verify,
        attacks=st.lists(st.sampled_from(["apgd-ce", "apgd-dlr", "square"]), min_size=1, max_size=3).map(
            tuple
        ),
        max_gap=above_zero,
        min_agreement=st.floats(0, 1),
    ),
)


@given(recipes)
@settings(deadline=None)
def test_recipe_round_trip(recipe: Recipe) -> None:
    again = parse(tomllib.loads(to_toml(recipe)))
    assert again == recipe
    assert differences(again, recipe) == []
    assert to_toml(again) == to_toml(recipe)


# --- merge and differences ---


def test_merge_prefers_later_documents() -> None:
    default: Tables = {"train": {"epochs": 3, "lr": 0.1}, "data": {"shift": 1}}
    file: Tables = {"train": {"epochs": 5}, "threat": {"eps": "4/255"}}
    merged = merge(default, file, {"train": {"epochs": 7}}, {})
    assert merged["train"] == {"epochs": 7, "lr": 0.1}
    assert merged == {"train": merged["train"], "data": {"shift": 1}, "threat": {"eps": "4/255"}}
    assert default["train"] == {"epochs": 3, "lr": 0.1}  # the arguments are unchanged
    assert merge() == {}


@pytest.mark.parametrize("later", [{}, {"train": {"epochs": 3}}])
@pytest.mark.parametrize("earlier", [{}, {"train": {"epochs": 5}}])
def test_merged_value_for_section_is_refused(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    """A recipe file with `train = 3`, between the data set's defaults and the command line."""
    with pytest.raises(InvalidValue, match="train"):
        parse(merge(earlier, {"train": 3}, later))  # type: ignore[dict-item]


def test_differences_have_key_and_values() -> None:
    one = parse({"train": {"lr": 0.1}, "model": {"channels": [1], "width": 2}})
    other = parse({"train": {"lr": 0.2}, "model": {"channels": [2]}, "verify": {"attacks": ["square"]}})
    lines = set(differences(one, other))
    attacks = "verify.attacks: ['apgd-ce', 'apgd-t', 'fab-t', 'square'], ['square']"
    assert lines == {"train.lr: 0.1, 0.2", "model.channels: [1], [2]", "model.width: 2, None", attacks}
    assert "model.width: None, 2" in differences(other, one)
    assert differences(one, one) == []


# --- files ---


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"nowhere\.toml cannot be read: No such file"):
        load_recipe(tmp_path / "nowhere.toml")


def test_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=tmp_path.name):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xff\xfe\x00\x89PNG", id="not UTF-8"),
        pytest.param(bytes(range(256)), id="every byte"),
        pytest.param(b"\x00", id="NUL"),
        pytest.param(b"epochs: 3", id="YAML"),
        pytest.param(b"[train", id="half a line"),
        pytest.param(b"[train]\nepochs = 1\nepochs = 2", id="twice"),
        pytest.param(b"epochs = " + b"9" * 5000, id="more digits than Python converts"),
    ],
)
def test_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidValue, match=r"recipe\.toml is not a TOML file"):
        load_recipe(path)
