"""robust-export doctor and models."""

from __future__ import annotations

import pytest

from robust_export.cli import machine_checks
from tests.cli.invoke import run, succeed


def test_doctor_lists_the_components() -> None:
    result = succeed("doctor")
    assert result["ready"]
    assert {"Python", "torch", "ONNX Runtime", "GPU"} <= {check["name"] for check in result["checks"]}


@pytest.mark.parametrize(
    ("package", "code", "advice"),
    [
        ("pydantic", 1, "pip install pydantic"),
        ("timm", 0, "robust-export[train]"),
        ("starlette", 0, "robust-export[serve]"),
    ],
)
def test_doctor_advises_on_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, package: str, code: int, advice: str
) -> None:
    version = machine_checks._version
    monkeypatch.setattr(machine_checks, "_version", lambda name: None if name == package else version(name))
    result = run("doctor")
    assert result.exit_code == code
    assert advice in result.stdout


def test_models_lists_and_filters_names() -> None:
    names = run("models").stdout.split()
    assert {"r18_sparta", "resnet34_relu", "mobilenetv3_large_100_sparta"} <= set(names)
    filtered = succeed("models", "resnet10t")["models"]
    assert filtered == [name for name in names if "resnet10t" in name]
