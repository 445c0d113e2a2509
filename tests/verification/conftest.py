"""Fixtures of the verification tests: one verified bundle whose attack results are reused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import pytest

from robust_export.bundle import Bundle
from robust_export.recipe.schema import Verify
from robust_export.utils.work_items import WorkItems
from robust_export.verification import verify as verify_module
from robust_export.verification.results import Report
from robust_export.verification.verify import verify

FAST = Verify(attacks=("apgd-ce",), iterations=3, queries=30, ascent=10, samples=48, max_drop=0.1)


@dataclass(frozen=True)
class Verified:
    """A bundle that was verified with FAST and still has the results of all attacks; read only."""

    path: Path
    report: Report


@contextmanager
def kept_work_items() -> Iterator[None]:
    """Keep the attacks on the reference model in the bundle for the next verification; write no page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkItems, "finish", lambda self: None)
        patch.setattr(verify_module, "render", lambda report: "")
        yield


@pytest.fixture(scope="session")
def verified(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Verified:
    path = copytree(trained, tmp_path_factory.mktemp("verified") / "tiny")
    with kept_work_items():
        return Verified(path, verify(path, settings=FAST, device="cpu"))


@pytest.fixture
def attacked(bundle: Bundle, verified: Verified, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Return `bundle` with the results of all attacks with FAST; no page is rendered."""
    copytree(verified.path / "checkpoints", bundle.path / "checkpoints", dirs_exist_ok=True)
    monkeypatch.setattr(verify_module, "render", lambda report: "")
    return bundle
