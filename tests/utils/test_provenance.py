"""Facts recorded with a result."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib import metadata

import pytest

import robust_export
from robust_export.utils.provenance import now, versions


def test_now_is_utc_to_the_second() -> None:
    time = datetime.fromisoformat(now())
    assert time.utcoffset() == timedelta(0)
    assert datetime.now(UTC) - time < timedelta(hours=1)
    assert "." not in now()


def test_versions_of_installed_packages() -> None:
    assert {"robust-export", "torch", "numpy", "onnx", "timm"} <= versions().keys()
    assert versions()["torch"] == metadata.version("torch")


def test_versions_without_installed_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert versions() == {"robust-export": robust_export.__version__}
