"""robust-export verify: exit codes, tables, the recorded command, bad options."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from robust_export.bundle import Bundle
from tests.cli.invoke import run

QUICK = ["--samples", "10", "--iterations", "1", "--queries", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an empty report.html: its charts take half of the time of a small verification."""
    monkeypatch.setattr("robust_export.verification.verify.render", lambda report: "")


def test_undecided_verdict_exits_with_3(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")  # a leftover: without WORLD_SIZE it must not silence the command
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    result = run("verify", "--model", bundle.path, *QUICK)
    assert result.exit_code == 3
    assert "UNDECIDED model.onnx" in result.stderr
    assert "UNDECIDED" in result.stdout
    for text in ("clean accuracy", "robust accuracy", "agreement", "flip margin", "Linf eps 0.1"):
        assert text in result.stdout


def test_recorded_command_can_be_repeated(bundle: Bundle, tmp_path: Path) -> None:
    odd = tmp_path / "a file's copy.onnx"
    odd.write_bytes(bundle.file("model.onnx").read_bytes())
    given = [
        "verify", "--model", str(bundle.path), "--artifact", "model.onnx", "--artifact", str(odd),
        *QUICK, "--max-gap", "0.01", "--runtime", "onnxruntime",
    ]  # fmt: skip

    def verify(words: list[str]) -> dict[str, Any]:
        run(*words)
        report: dict[str, Any] = json.loads((bundle.path / "verify.json").read_text())
        return report

    first = verify(given)
    words = shlex.split(first["command"])
    assert words[0] == "robust-export"
    assert sorted(words[1:]) == sorted(given)
    again = verify(words[1:])
    assert again["command"] == first["command"]
    assert again["source"] == first["source"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--attacks", "apgd-ce,magic"], "magic"),
        (["--attacks", ""], "attacks"),
        (["--max-drop", "2"], "max_drop"),
        (["--samples", "-1"], "'--samples'"),
        (["--eps", "1/0"], "1/0"),
    ],
)
def test_bad_options(bundle: Bundle, args: list[str], message: str) -> None:
    result = run("verify", "--model", bundle.path, *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (bundle.path / "verify.json").exists()
