"""Checks that the ranks of a distributed run execute for `test_distributed`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from robust_export.errors import TrainingError, TrainingStopped
from robust_export.nn.state_dict import tensors
from robust_export.recipe.recipe_file import parse
from robust_export.recipe.schema import Recipe
from robust_export.training.distributed import Processes
from robust_export.training.run import train
from robust_export.training.trainer import Trainer
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
    "fast": {"train": {"method": "fast", "batch_size": 37}},  # 37 and 3: rank 1 has no shard of the last
    "mixed": {"data": {"cutmix": 1.0, "randaugment": 1}},
    "batch norm": {"model": {"norm_layer": "batchnorm2d"}},
}
"""Recipes by name; only the last network has batch norm."""


def make_recipe(folder: Path, case: str) -> Recipe:
    """Return a recipe for the images in `folder`/images."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "name": "resnet10t_sparta", "image_size": 8, "channels": [8, 8, 16, 16], "stem_width": 8,
            "norm_layer": "groupnorm1",
        },
        "data": {"name": f"folder:{folder / 'images'}", "shift": 1, "flip": True, "val_fraction": 0.2},
        "threat": {"eps": 0.05}, "attack": {"steps": 2, "val_steps": 2},
        "train": {"epochs": 2, "batch_size": BATCH, "ema": 0.5},
    }  # fmt: skip
    for section, keys in CASES.get(case, {}).items():
        sections[section] |= keys
    return parse(sections, case)


def stop_after(steps: int, on_this_rank: bool = True) -> tuple[StopRequest, Callable[[int, int, int], None]]:
    """Return a stop request and a callback for `on_step` that sets it after so many steps."""
    stop, left = StopRequest(), iter(range(steps, 0, -1))

    def count(*_: int) -> None:
        stop.requested = on_this_rank and next(left) == 1

    return stop, count


def run_checks(folder: Path) -> None:
    """Run all checks on this rank; write the faults to `folder`/faults.RANK."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    join_process_group()
    checks = (train_cases, stop_and_resume, raise_errors)
    faults = [fault for check in checks for fault in check(folder)]
    dist.destroy_process_group()
    (folder / f"faults.{os.environ['RANK']}").write_text("\n".join(faults))


def train_cases(folder: Path) -> Iterator[str]:
    """Train all cases; yield a fault for each case that leaves the ranks with different results."""
    for case in CASES:
        processes = Processes(CPU)
        trainer = Trainer(make_recipe(folder, case), folder / "two" / case, processes)
        trainer.start()
        trainer.fit(lambda *_: None)
        model, averaged = tensors(trainer.step.model), tensors(trainer.step.ema)
        state = {**model, **{f"ema.{name}": tensor for name, tensor in averaged.items()}}
        states = all_gather({k: v for k, v in state.items() if "num_batches_tracked" not in k})
        if any(not torch.equal(states[0][name], states[1][name]) for name in states[0]):
            yield f"{case}: networks differ"
        histories = all_gather([(e.loss, e.clean_accuracy, e.robust_accuracy) for e in trainer.history])
        if histories[0] != histories[1]:
            yield f"{case}: histories differ: {histories}"
        if dist.get_rank() == 0:
            trainer.write_bundle(case)
        dist.barrier()


def stop_and_resume(folder: Path) -> Iterator[str]:
    """Stop a run because rank 1 is requested to; resume one that a single process began."""
    recipe = make_recipe(folder, "interrupted")
    stop, count = stop_after(STOP_AFTER, on_this_rank=dist.get_rank() == 1)
    try:
        train(recipe, folder / "two then one", device="cpu", stop=stop, on_step=count)
        yield "the stop request had no effect"
    except TrainingStopped as error:
        if error.reported_elsewhere != (dist.get_rank() != 0):
            yield "not exactly rank 0 reports the stop"
    bundle = train(recipe, folder / "one then two", device="cpu", resume=True)
    if len({b.path for b in all_gather(bundle)}) != 1:
        yield "the ranks return different bundles"


def raise_errors(folder: Path) -> Iterator[str]:
    """Cause an error on rank 1 and one on rank 0; it is raised on both and reported by one."""
    path = folder / ("missing" if dist.get_rank() else "images")
    try:
        train(parse({"data": {"name": f"folder:{path}"}}), folder / "none", device="cpu")
        yield "nothing was raised"
    except Exception as error:
        reported_elsewhere = getattr(error, "reported_elsewhere", None)
        if "missing" not in str(error) or reported_elsewhere != (dist.get_rank() == 0):
            yield f"{error!r}"
    try:
        train(make_recipe(folder, "pgd-at"), folder / "two" / "pgd-at", device="cpu")
        yield "a run was overwritten"
    except TrainingError as error:
        if "--resume" not in str(error) or error.reported_elsewhere != (dist.get_rank() != 0):
            yield f"{error!r}"


def all_gather(value: object) -> list[Any]:
    """Return the values of all ranks."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
