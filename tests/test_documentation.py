"""The documentation: it builds without a warning, and names only files that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILE = re.compile(r"`((?:pipeline|plugins|tests|benchmarks|docs|deploy|requirements)/[\w./-]+)`")
CODE_FILE = re.compile(r"`((?:\w+/)+\w+\.py)`")


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (built.returncode, built.stdout.strip(), built.stderr.strip()) == (0, "", "")
    reference = (tmp_path / "api.html").read_text()
    assert "depthwise kernel" in reference  # from the docstring of sparta


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_named_files_exist(page: Path) -> None:
    text = page.read_text()
    missing = [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    for name in CODE_FILE.findall(text):
        if not any((base / name).exists() for base in (ROOT, ROOT / "pipeline" / "robust_export")):
            missing.append(name)
    assert missing == []
