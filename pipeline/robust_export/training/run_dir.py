"""The folder that a training run works in: what may be begun, gone on with, or replaced there."""

from __future__ import annotations

import shutil
from pathlib import Path

from robust_export.bundle import MANIFEST
from robust_export.errors import TrainingError
from robust_export.recipe.recipe_file import differences, load_recipe, parse
from robust_export.recipe.schema import Recipe
from robust_export.training import checkpoint as ckpt

MAY_CHANGE = ("train.checkpoint_every:", "train.tracker:", "data.workers:")
"""Keys of a recipe that have no influence on the weights."""


def prepare(target: Path, *, resume: bool, force: bool) -> Path:
    """Return the folder to train in, having made sure that nothing anybody wants is lost.

    That is `target` itself, or with `force` and a run in `target` a folder beside it.
    """
    has_run = (target / MANIFEST).is_file() or ckpt.has_checkpoint(target / ckpt.FOLDER)
    if not has_run:
        leftovers = {"recipe.toml", ckpt.FOLDER}  # of a run that was killed before its first checkpoint
        for path in target.iterdir() if target.is_dir() else ():
            if path.name not in leftovers and path.suffix != ".tmp":
                raise TrainingError(f"{target} holds {path.name} and no run; give another --out")
        return target
    if force:
        beside = target.with_name(f".{target.name}.new")
        if not resume:
            shutil.rmtree(beside, ignore_errors=True)
        return beside
    if not resume:
        raise TrainingError(
            f"{target} already holds a run. Go on with it by --resume, replace it by --force, or "
            "write elsewhere with --out."
        )
    return target


def check_same_recipe(recipe: Recipe, folder: Path) -> None:
    """Raise TrainingError if the run in `folder` was started from another recipe."""
    file = folder / "recipe.toml"
    if not file.is_file():
        return
    lines = differences(parse(load_recipe(file), str(file)), recipe)
    if changed := [line for line in lines if not line.startswith(MAY_CHANGE)]:
        raise TrainingError(
            f"the run in {folder} was started from another recipe; --resume needs the same:\n  "
            + "\n  ".join(changed)
            + "\n(the run's value, then yours). Give the same options, or another --out."
        )
