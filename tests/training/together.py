"""What one of two ranks does: train what the test trains in one process, and compare the ranks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from robust_export.errors import TrainingError, TrainingStopped
from robust_export.nn.state_dict import tensors
from robust_export.recipe.recipe_file import parse
from robust_export.recipe.schema import Recipe
from robust_export.training.run import train
from robust_export.training.trainer import Run
from robust_export.utils.stop import StopRequest
from robust_export.utils.work_items import join_process_group

CPU = torch.device("cpu")
BATCH = 14  # of 40 images: 14, 14 and 12
STOP_AFTER = 4  # steps, in the second epoch

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "pgd-at": {"train": {"clip_grad": 1.0, "label_smoothing": 0.1}},
    "adamw": {"train": {"optimizer": "adamw", "lr": 1e-3}, "threat": {"norm": "L2", "eps": 0.5}},
    "trades": {"train": {"method": "trades", "awp": 0.01}},
    "mart": {"train": {"method": "mart", "batch_size": 13}},  # the last image is left out
    "fast": {"train": {"method": "fast", "batch_size": 37}},  # 37 and 3: nothing is left for the second
    "mixed": {"data": {"cutmix": 1.0, "randaugment": 1}},
    "batch norm": {"model": {"norm_layer": "batchnorm2d"}},
}
"""Recipes by name; all but the last are of a network without batch norm."""


def recipe(images: Path, case: str) -> Recipe:
    """Return the recipe of a case for a folder of images."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "name": "resnet10t_sparta", "image_size": 8, "channels": [8, 8, 16, 16], "stem_width": 8,
            "norm_layer": "groupnorm1",
        },
        "data": {"name": f"folder:{images}", "shift": 1, "flip": True, "val_fraction": 0.2},
        "threat": {"eps": 0.05}, "attack": {"steps": 2, "val_steps": 2},
        "train": {"epochs": 2, "batch_size": BATCH, "ema": 0.5},
    }  # fmt: skip
    for section, keys in CASES.get(case, {}).items():
        sections[section] |= keys
    return parse(sections, case)


def stop_after(steps: int, here: bool = True) -> tuple[StopRequest, Any]:
    """Return a request to stop, and the callback that asks for it after so many steps."""
    stop, left = StopRequest(), iter(range(steps, 0, -1))

    def count(*_: int) -> None:
        stop.requested = here and next(left) == 1

    return stop, count


def everybody(value: object) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def cases(images: Path, folder: Path) -> Iterator[str]:
    """Train all cases; yield a line for each that left its processes with different networks."""
    for case in CASES:
        run = Run(recipe(images, case), folder / "two" / case, CPU)
        run.start()
        run.fit(lambda *_: None)
        state = {**tensors(run.model), **{f"ema.{k}": v for k, v in tensors(run.ema).items()}}
        compared = everybody({k: v for k, v in state.items() if "num_batches_tracked" not in k})
        history = everybody([(e.loss, e.clean_accuracy, e.robust_accuracy) for e in run.history])
        if any(not torch.equal(a, b) for a, b in zip(*(c.values() for c in compared), strict=True)):
            yield f"{case}: networks differ"
        if history[0] != history[1]:
            yield f"{case}: histories differ: {history}"
        run.processes.rank_zero_broadcast(lambda run=run, case=case: run.finish(case) and None)  # type: ignore[misc]


def interruptions(images: Path, folder: Path) -> Iterator[str]:
    """StopRequest a run on all because the second is asked; go on with one that was stopped alone."""
    asked = recipe(images, "interrupted")
    stop, count = stop_after(STOP_AFTER, here=dist.get_rank() == 1)
    try:
        train(asked, folder / "two then one", device="cpu", stop=stop, on_step=count)
        yield "a request to stop was not heard"
    except TrainingStopped as error:
        if error.reported_elsewhere != (dist.get_rank() != 0):
            yield "it is not one process that reports the stop"
    bundle = train(asked, folder / "one then two", device="cpu", resume=True)
    if len({b.path for b in everybody(bundle)}) != 1:
        yield "the bundles are not the same"


def errors(images: Path, folder: Path) -> Iterator[str]:
    """An error on one process is raised on all, and reported once."""
    path = images.with_name("missing") if dist.get_rank() else images
    wrong = parse({"data": {"name": f"folder:{path}"}})
    try:
        train(wrong, folder / "none", device="cpu")
        yield "nothing was raised"
    except Exception as error:
        if "missing" not in str(error) or getattr(error, "reported_elsewhere", None) != (
            dist.get_rank() == 0
        ):
            yield f"{error!r}"
    try:
        train(recipe(images, "pgd-at"), folder / "two" / "pgd-at", device="cpu")
        yield "a run was overwritten"
    except TrainingError as error:
        if "--resume" not in str(error) or error.reported_elsewhere != (dist.get_rank() != 0):
            yield f"{error!r}"


def check(images: Path, folder: Path) -> None:
    """Do all of the above on one rank, and write what was wrong to `folder`/faults.RANK."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    join_process_group()
    faults = [fault for part in (cases, interruptions, errors) for fault in part(images, folder)]
    dist.destroy_process_group()
    (folder / f"faults.{os.environ['RANK']}").write_text("\n".join(faults))
