"""Schemathesis against the REST interface, from the server's own OpenAPI description."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.serving.servers import TIMEOUT, Server


def test_schemathesis_finds_no_issue(server: Server, tmp_path: Path) -> None:
    words = [
        "-m", "schemathesis.cli", "run", f"{server.rest}/openapi.json", "--phases", "coverage,fuzzing",
        "--max-examples", "5", "--generation-deterministic", "--no-color",
        "--exclude-path-regex", "slow|versions",
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, timeout=4 * TIMEOUT
    )
    assert result.returncode == 0, result.stdout
    assert "No issues found" in result.stdout
    assert not [line for line in server.log.lines() if line.get("status") == 500]
