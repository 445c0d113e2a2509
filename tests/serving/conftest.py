"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from robust_export.runtimes.remote import API_KEY_VARIABLE
from tests.serving.bundles import linear_bundle
from tests.serving.servers import App, Server, start


@pytest.fixture(autouse=True)
def _no_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a linear network."""
    return linear_bundle(tmp_path_factory.mktemp("exported") / "net")


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the same logits, computed after 20 products of large matrices."""
    return linear_bundle(tmp_path_factory.mktemp("exported") / "slow", matmuls=20)


@pytest.fixture(scope="session")
def server(net: Path, slow: Path) -> Iterator[Server]:
    """A server process with both bundles, for tests that do not change it."""
    with start("--model", net, "--model", slow) as running:
        yield running


@pytest.fixture(scope="module")
def app(net: Path) -> Iterator[App]:
    running = App(net)
    yield running
    running.close()
