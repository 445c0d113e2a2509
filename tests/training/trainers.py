"""Small recipes, trainers, single steps, and interruptions at a given step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from robust_export.recipe.recipe_file import merge
from robust_export.recipe.schema import Recipe
from robust_export.training.distributed import Processes
from robust_export.training.step import TrainStep
from robust_export.training.trainer import Trainer
from tests.conftest import tiny_recipe

CPU = torch.device("cpu")
STEPS_PER_EPOCH = 11  # of the tiny recipe
QUICK_STEPS = 5  # of an epoch of the quick recipe

RANDOM: dict[str, Any] = {
    "model": {"drop_rate": 0.2},
    "data": {"flip": True, "randaugment": 1, "cutmix": 1.0},
    "train": {"checkpoint_every": 3, "method": "trades", "awp": 0.005},
}
"""Changes of a recipe that use every source of randomness."""


def quick_recipe(images: Path, **sections: dict[str, Any]) -> Recipe:
    """Return the tiny recipe with less to do: two epochs of five steps on 40 images, 10 for validation.

    Args:
        images: the folder of the fixture `images`.
        sections: changes.
    """
    changes = merge(sections, {})
    changes["data"] = {"name": f"folder:{images}", "val_fraction": 0.2, **changes.get("data", {})}
    changes["train"] = {"epochs": 2, "batch_size": 8, **changes.get("train", {})}
    changes["attack"] = {"steps": 1, "val_steps": 1, **changes.get("attack", {})}
    return tiny_recipe(**changes)


def make_trainer(folder: Path, **sections: dict[str, Any]) -> Trainer:
    """Return a trainer of the tiny recipe with changes by section."""
    return Trainer(tiny_recipe(**sections), folder, Processes(CPU))


def take_steps(folder: Path, count: int = 3, **sections: dict[str, Any]) -> tuple[Trainer, list[Tensor]]:
    """Return a trainer after `count` steps on the first 32 images, and the losses; without warmup."""
    sections["train"] = {"warmup": 0.0, **sections.get("train", {})}
    trainer = make_trainer(folder, **sections)
    pixels, labels = first_images(trainer)
    return trainer, [trainer.step(pixels, labels, Generator().manual_seed(i)) for i in range(count)]


def first_images(trainer: Trainer, count: int = 32) -> tuple[Tensor, Tensor]:
    """Return the first training images and their labels."""
    return trainer.batches.feed.images.batch(range(count))


def before_step(monkeypatch: pytest.MonkeyPatch, nth: int, action: Callable[[], object]) -> None:
    """Call `action` before the nth training step from now on."""
    original, steps = TrainStep.__call__, iter(range(1, 10**6))

    def call(self: TrainStep, *args: Any) -> Tensor:
        if next(steps) == nth:
            action()
        return original(self, *args)

    monkeypatch.setattr(TrainStep, "__call__", call)


def interrupt() -> None:
    """Raise KeyboardInterrupt."""
    raise KeyboardInterrupt


def weights(folder: Path) -> bytes:
    """Return the content of the bundle's weights.safetensors."""
    return (folder / "weights.safetensors").read_bytes()
