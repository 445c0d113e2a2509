"""Architecture: who imports whom (contracts in pyproject.toml), sizes, and what stays free of torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "pipeline" / "robust_export"

MAX_TOP_LEVEL = 16  # modules and packages of robust_export
MAX_CHAIN = 15  # modules, each importing the next
MAX_LINES = 300  # of a file


def lint_imports(source_root: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml on the package robust_export under `source_root`."""
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    config = [str(ROOT / "pyproject.toml"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(source_root)}
    return subprocess.run(
        [sys.executable, "-c", code, *config],
        env=environment,
        cwd=source_root,
        capture_output=True,
        text=True,
    )


def test_contracts_hold() -> None:
    checked = lint_imports(SOURCE.parent)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("bundle", "from robust_export import verification", "robust_export.bundle"),
        ("nn/stem", "from robust_export import verify", "robust_export.nn"),
        ("utils/files", "def late():\n    from robust_export.nn import models", "robust_export.utils"),
        (
            "training/losses",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from robust_export.training import run",
            "No cycles are allowed in robust_export.training",
        ),
    ],
    ids=["from the root", "lazy name of the root", "inside a function", "cycle under TYPE_CHECKING"],
)
def test_contracts_see(module: str, planted: str, broken: str, tmp_path: Path) -> None:
    copy = shutil.copytree(SOURCE, tmp_path / "robust_export")
    file = copy / f"{module}.py"
    file.write_text(f"{file.read_text()}\n{planted}\n")
    checked = lint_imports(tmp_path)
    assert checked.returncode != 0
    assert broken in checked.stdout


def test_top_level_is_small() -> None:
    top = [p.name for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    assert len([name for name in top if not name.startswith("__")]) <= MAX_TOP_LEVEL


def test_import_chains_are_short() -> None:
    graph = grimp.build_graph("robust_export", cache_dir=None)
    for command in graph.find_children("robust_export.cli.commands"):  # imported by name, when it is used
        graph.add_import(importer="robust_export.cli.main", imported=command)

    @cache
    def longest(module: str) -> tuple[str, ...]:
        """Return the longest chain of imports that begins with `module` (the contracts exclude cycles)."""
        imported = graph.find_modules_directly_imported_by(module)
        return (module, *max(map(longest, imported), key=len, default=()))

    chain = max(map(longest, graph.modules - {"robust_export"}), key=len)
    assert len(chain) <= MAX_CHAIN, "\n".join(chain)


def test_file_names_tell_modules_apart() -> None:
    names = Counter(file.name for file in SOURCE.rglob("*.py") if not file.name.startswith("__"))
    assert {name: count for name, count in names.items() if count > 2} == {}


def test_files_are_short() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in SOURCE.rglob("*.py")}
    assert {file.name: length for file, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("robust_export", "numpy"),
        ("robust_export.bundle", "torch"),
        ("robust_export.serving.triton.repository", "torch"),
        ("robust_export.data.image_files", "torch"),
        ("robust_export.runtimes.onnxruntime", "torch"),
        ("robust_export.serving.workers", "torch"),
        ("robust_export.serving.ui.static_copy", "torch"),
        ("robust_export.cli", "torch"),
        ("robust_export.cli", "starlette"),
    ],
)
def test_import_stays_light(module: str, banned: str) -> None:
    code = f"import sys, {module}; sys.exit({banned!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
