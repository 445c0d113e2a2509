"""What the tests of the page share: a bundle with attacks to show."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from robust_export.bundle import Bundle
from robust_export.serving.ui.make_examples import Wanted, make_examples
from tests.conftest import OncePerRun


@pytest.fixture(scope="session")
def shown(trained: Path, once_per_run: OncePerRun) -> Path:
    """Return a bundle with an examples.json: read only, shared by all workers."""

    def make(folder: Path) -> None:
        bundle = Bundle.open(copytree(trained, folder / "tiny"))
        make_examples(bundle, Wanted(images=6), device="cpu")

    return once_per_run("shown", make) / "tiny"


@pytest.fixture(scope="session")
def found(shown: Path) -> dict[str, Any]:
    """What that file holds."""
    content: dict[str, Any] = json.loads((shown / "examples.json").read_text())
    return content
