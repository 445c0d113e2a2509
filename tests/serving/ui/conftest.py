"""What the tests of the page share: a bundle with attacks to show."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from robust_export.bundle import Bundle
from robust_export.serving.ui.make_examples import Wanted, make_examples
from tests.serving.conftest import _no_key, net  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
def shown(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an examples.json; read it only."""
    folder = tmp_path_factory.mktemp("shown") / "tiny"
    copytree(trained, folder)
    make_examples(Bundle.open(folder), Wanted(images=6), device="cpu")
    return folder


@pytest.fixture(scope="session")
def found(shown: Path) -> dict[str, Any]:
    """What that file holds."""
    content: dict[str, Any] = json.loads((shown / "examples.json").read_text())
    return content
