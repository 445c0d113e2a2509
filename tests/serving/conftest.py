"""What the tests of the server share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from robust_export.runtimes.remote import KEY
from tests.serving.bundles import linear_bundle
from tests.serving.servers import App, Server, start


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a linear network."""
    return linear_bundle(tmp_path_factory.mktemp("exported") / "net")


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same logits, after a good many products of matrices."""
    return linear_bundle(tmp_path_factory.mktemp("exported") / "slow", repeats=60)


@pytest.fixture(scope="session")
def server(net: Path, slow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that many tests ask; it has both bundles."""
    with start(tmp_path_factory.mktemp("server"), "--model", net, "--model", slow) as running:
        yield running


@pytest.fixture(scope="module")
def app(net: Path) -> Iterator[App]:
    running = App(net)
    yield running
    running.close()
