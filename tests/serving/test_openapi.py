"""Schemathesis on the REST interface, by the description that the server gives of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.serving.servers import LONG, Server


def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    words = [
        "-m", "schemathesis.cli", "run", f"{server.rest}/openapi.json", "--phases", "coverage,fuzzing",
        "--max-examples", "5", "--generation-deterministic", "--no-color",
        "--exclude-path-regex", "slow|versions",
    ]  # fmt: skip
    ran = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, timeout=4 * LONG
    )
    assert ran.returncode == 0, ran.stdout
    assert "No issues found" in ran.stdout
    assert not [line for line in server.log() if line.get("status") == 500]
