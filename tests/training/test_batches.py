"""Augmented batches: what augmentation does, extra images, shards of several processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from robust_export.data.datasets import load_splits
from robust_export.training.batches import TrainingBatches
from robust_export.training.distributed import Processes
from robust_export.utils.sharded_rng import ShardedGenerator
from tests.conftest import tiny_recipe
from tests.data.sample_data import write_folder

SEED = 3


def make_batches(rank: int = 0, world: int = 1, batch_size: int = 100, **data: Any) -> TrainingBatches:
    """Return the batches of one of `world` processes."""
    processes = SimpleNamespace(sharded_generator=lambda: ShardedGenerator(rank, world))
    recipe = tiny_recipe(data={"shift": 0, **data}, train={"batch_size": batch_size})
    images, _ = load_splits("digits", 8, 3, "data", 0.1)
    return TrainingBatches(recipe, images, cast(Processes, processes))


def first_batch(batches: TrainingBatches, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
    """Return the first batch of an epoch, augmented."""
    torch.manual_seed(SEED)
    generator = ShardedGenerator(rank, world)
    generator.manual_seed(SEED)
    batch = next(iter(batches.epoch(SEED, 0)))
    return batches.augment(batch, generator.for_batch(batches.size(0)))


def test_flip_mirrors_some_images() -> None:
    plain, labels = first_batch(make_batches())
    flipped, same = first_batch(make_batches(flip=True))
    assert torch.equal(labels, same)
    unchanged = (flipped == plain).flatten(1).all(1)
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert (unchanged | mirrored).all()
    assert 20 < mirrored.sum() < 80


def test_cutmix_labels_are_probabilities() -> None:
    plain, classes = first_batch(make_batches())
    pixels, labels = first_batch(make_batches(cutmix=1.0))
    assert labels.shape == (100, 10)
    torch.testing.assert_close(labels.sum(1), torch.ones(100))
    assert not torch.equal(labels, torch.nn.functional.one_hot(classes, 10).float())
    assert not torch.equal(pixels, plain)


def test_batch_contains_its_fraction_of_extra_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "extra", {"3": 4, "8": 4})
    batches = make_batches(extra=f"folder:{tmp_path / 'extra'}", extra_ratio=0.25)
    assert batches.feed.extra is not None
    extra = {image.numpy().tobytes() for image in batches.feed.extra.batch(range(8))[0]}
    pixels, labels = first_batch(batches)
    from_extra = torch.tensor([image.numpy().tobytes() in extra for image in pixels])
    assert from_extra.sum() == 25
    assert set(labels[from_extra].tolist()) == {3, 8}


@pytest.mark.parametrize(
    "data",
    [{"shift": 1, "flip": True}, {"shift": 1, "randaugment": 1, "cutmix": 1.0}],
    ids=["sharded loading", "whole batches"],
)
def test_shards_of_two_processes_make_the_batch(data: dict[str, Any]) -> None:
    whole = first_batch(make_batches(**data))
    for rank in range(2):
        shard = first_batch(make_batches(rank, 2, **data), rank, 2)
        for mine, all_images in zip(shard, whole, strict=True):
            assert torch.equal(mine, all_images[rank::2])
