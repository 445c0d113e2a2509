"""The folder of a training run: whether a run may start, continue or replace another one there."""

from __future__ import annotations

import shutil
from pathlib import Path

from robust_export.bundle import MANIFEST
from robust_export.errors import TrainingError
from robust_export.recipe.recipe_file import differences, load_recipe, parse
from robust_export.recipe.schema import Recipe
from robust_export.training import checkpoint as ckpt

MAY_CHANGE = ("train.checkpoint_every:", "train.tracker:", "data.workers:")
"""Keys of a recipe that may differ on --resume: they have no influence on the weights."""


def choose_folder(target: Path, *, resume: bool, force: bool) -> Path:
    """Return the folder to train in: `target`, or a temporary folder beside it if `force` replaces a run.

    Raises:
        TrainingError: if `target` contains files of something else, or a run without `resume` or `force`.
    """
    has_run = (target / MANIFEST).is_file() or ckpt.has_checkpoint(target / ckpt.FOLDER)
    if not has_run:
        leftovers = {"recipe.toml", ckpt.FOLDER}  # a run that was killed before its first checkpoint
        for path in target.iterdir() if target.is_dir() else ():
            if path.name not in leftovers and path.suffix != ".tmp":
                raise TrainingError(f"{target} contains {path.name} but no run; choose another --out")
        return target
    if force:
        temporary = target.with_name(f".{target.name}.new")
        if not resume:
            shutil.rmtree(temporary, ignore_errors=True)
        return temporary
    if not resume:
        raise TrainingError(
            f"{target} already contains a run: continue it with --resume, replace it with --force, or choose "
            "another --out."
        )
    return target


def check_same_recipe(recipe: Recipe, folder: Path) -> None:
    """Raise TrainingError if the run in `folder` was started with another recipe."""
    file = folder / "recipe.toml"
    if not file.is_file():
        return
    lines = differences(parse(load_recipe(file), str(file)), recipe)
    if changed := [line for line in lines if not line.startswith(MAY_CHANGE)]:
        raise TrainingError(
            f"the run in {folder} was started with another recipe, but --resume needs the same one:\n  "
            + "\n  ".join(changed)
            + "\n(the value of the run, then the new one). Give the same options, or choose another --out."
        )
