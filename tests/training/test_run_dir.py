"""What is gone on with, and what is overwritten."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from robust_export.bundle import Bundle
from robust_export.errors import TrainingError
from robust_export.training import run
from robust_export.training.run import train
from tests.conftest import tiny_recipe
from tests.training.test_interruption import interrupt, weights

pytestmark = pytest.mark.usefixtures("foreground")


def test_resume_with_nothing_to_resume_starts(trained: Path, tmp_path: Path) -> None:
    train(tiny_recipe(), tmp_path / "run", device="cpu", resume=True)
    assert weights(tmp_path / "run") == weights(trained)


def test_resume_of_a_finished_run_succeeds_at_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Run", None)
    assert train(tiny_recipe(), bundle.path, resume=True).manifest == bundle.manifest


@pytest.mark.parametrize("finished", [True, False])
def test_resume_with_another_recipe_names_what_differs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    if not finished:
        (bundle.path / "manifest.json").unlink()
    with pytest.raises(TrainingError, match=r"train\.lr: 0\.1, 0\.3"):
        train(tiny_recipe(train={"lr": 0.3}), bundle.path, resume=True)


def test_a_run_is_not_overwritten_unless_asked(bundle: Bundle) -> None:
    before = weights(bundle.path)
    with pytest.raises(TrainingError, match=r"--resume.*--force.*--out"):
        train(tiny_recipe(train={"seed": 3}), bundle.path)
    assert weights(bundle.path) == before


def test_force_replaces_a_bundle_when_the_new_one_is_finished(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, recipe = weights(bundle.path), tiny_recipe(train={"seed": 3, "epochs": 1})
    with monkeypatch.context() as patch:
        interrupt(patch, 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, bundle.path, force=True, device="cpu")
    assert weights(Bundle.open(bundle.path).path) == before
    new = train(recipe, bundle.path, force=True, device="cpu")
    assert weights(new.path) != before
    assert new.path == bundle.path
    assert Bundle.open(bundle.path).recipe().train.seed == 3
    assert [p.name for p in bundle.path.parent.iterdir()] == [bundle.path.name]


def test_force_goes_on_where_it_was_killed_before_the_swap(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(train={"seed": 3, "epochs": 1})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "replace_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, bundle.path, force=True, device="cpu")
    assert Bundle.open(bundle.path).recipe().train.seed == 0
    monkeypatch.setattr(run, "Run", None)  # all is trained: nothing is left but the swap
    assert train(recipe, bundle.path, force=True, resume=True).path == bundle.path
    assert Bundle.open(bundle.path).recipe().train.seed == 3


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match=r"thesis\.tex"):
        train(tiny_recipe(), tmp_path, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
