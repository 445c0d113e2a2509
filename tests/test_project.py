"""Version, links, documented recipe keys and public names agree with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import robust_export
from robust_export.recipe.recipe_file import default_recipe, parse
from robust_export.recipe.schema import SECTIONS

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]


def test_version_and_changelog_agree() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert declared == robust_export.__version__
    newest = re.search(r"^## (\d[\d.]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == declared


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page.read_text()):
        link = target[0] or target[1]
        if not link.startswith(("http:", "https:")):
            assert (page.parent / link).exists(), link


def test_every_recipe_key_is_documented() -> None:
    docs = (ROOT / "docs" / "recipes.md").read_text()
    for section, kind in SECTIONS.items():
        assert f"## [{section}]" in docs
        for key in kind.__dataclass_fields__:
            if key != "options":
                assert f"`{key}`" in docs, f"[{section}] {key}"


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "svhn", "folder", "demo"])
def test_default_recipes_are_valid(name: str) -> None:
    assert default_recipe(name)
    parse(default_recipe(name), name)


def test_public_names_can_be_imported() -> None:
    for name in robust_export.__all__:
        assert getattr(robust_export, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = robust_export.nothing
