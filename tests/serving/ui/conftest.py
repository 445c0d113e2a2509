"""Fixtures of the page's tests: a bundle with examples, and a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from robust_export.bundle import Bundle
from robust_export.serving.ui.make_examples import AttackOptions, make_examples
from tests.conftest import OncePerRun
from tests.serving.ui.browser import Tab, find_browser, open_tab


@pytest.fixture(scope="session")
def with_examples(trained: Path, once_per_run: OncePerRun) -> Path:
    """A bundle with an examples.json, named tiny; read only."""

    def make(folder: Path) -> None:
        copytree(trained, folder / "tiny")
        make_examples(Bundle.open(folder / "tiny"), AttackOptions(images=6), device="cpu")

    return once_per_run("with-examples", make) / "tiny"


@pytest.fixture(scope="session")
def content(with_examples: Path) -> dict[str, Any]:
    """The content of its examples.json."""
    parsed: dict[str, Any] = json.loads((with_examples / "examples.json").read_text())
    return parsed


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    find_browser()
    with open_tab(tmp_path_factory.mktemp("browser")) as tab:
        yield tab
