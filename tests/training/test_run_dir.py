"""Which folders a run may start in, continue or replace."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_export.bundle import Bundle
from robust_export.errors import TrainingError
from robust_export.training import run
from robust_export.training.run import train
from tests.conftest import tiny_recipe
from tests.training.trainers import before_step, interrupt, quick_recipe, weights


def refuse_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a trainer is created from now on."""
    monkeypatch.setattr(run, "Trainer", lambda *_: pytest.fail("trained"))


def test_resume_without_a_run_starts_one(images: Path, quick_weights: bytes, tmp_path: Path) -> None:
    train(quick_recipe(images), tmp_path / "run", device="cpu", resume=True)
    assert weights(tmp_path / "run") == quick_weights


def test_resume_of_a_finished_run_returns_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_train(monkeypatch)
    assert train(tiny_recipe(), bundle.path, resume=True).manifest == bundle.manifest


@pytest.mark.parametrize("finished", [True, False])
def test_resume_with_another_recipe_names_the_difference(bundle: Bundle, finished: bool) -> None:
    if not finished:
        (bundle.path / "manifest.json").unlink()
    with pytest.raises(TrainingError, match=r"train\.lr: 0\.1, 0\.3"):
        train(tiny_recipe(train={"lr": 0.3}), bundle.path, resume=True)


def test_run_is_not_overwritten_without_force(bundle: Bundle) -> None:
    before = weights(bundle.path)
    with pytest.raises(TrainingError, match=r"--resume.*--force.*--out"):
        train(tiny_recipe(train={"seed": 3}), bundle.path)
    assert weights(bundle.path) == before


def test_force_replaces_a_bundle_when_the_new_one_is_finished(
    images: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, recipe = weights(bundle.path), quick_recipe(images, train={"seed": 3})
    with monkeypatch.context() as patch:
        before_step(patch, 5, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, bundle.path, force=True, device="cpu")
    assert weights(Bundle.open(bundle.path).path) == before
    new = train(recipe, bundle.path, force=True, device="cpu")
    assert weights(new.path) != before
    assert new.path == bundle.path
    assert Bundle.open(bundle.path).recipe().train.seed == 3
    assert [p.name for p in bundle.path.parent.iterdir()] == [bundle.path.name]


def test_force_and_resume_after_a_kill_before_the_replacement(
    images: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick_recipe(images, train={"seed": 3})
    with monkeypatch.context() as patch:
        patch.setattr(run, "replace_folder", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt):
            train(recipe, bundle.path, force=True, device="cpu")
    assert Bundle.open(bundle.path).recipe().train.seed == 0
    refuse_to_train(monkeypatch)  # only the replacement is left to do
    assert train(recipe, bundle.path, force=True, resume=True).path == bundle.path
    assert Bundle.open(bundle.path).recipe().train.seed == 3


@pytest.mark.parametrize("force", [True, False])
def test_folder_with_other_files_is_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match=r"thesis\.tex"):
        train(tiny_recipe(), tmp_path, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
