"""Fixtures of the tests of served models."""

from __future__ import annotations

import pytest

from robust_export.runtimes.remote import API_KEY_VARIABLE


@pytest.fixture(params=[True, False], ids=["binary", "json"])
def binary(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
