"""Fixtures for tests of training: a small data set, and weights of uninterrupted runs on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_export.training.run import train
from tests.data.sample_data import write_folder
from tests.training.trainers import RANDOM, quick_recipe, weights


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 60 random images in 5 classes, for `quick_recipe`."""
    folder = tmp_path_factory.mktemp("data") / "images"
    write_folder(folder / "train", dict.fromkeys("abcde", 10))
    write_folder(folder / "val", dict.fromkeys("abcde", 2))
    return folder


@pytest.fixture(scope="session")
def quick_weights(images: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the weights that `quick_recipe` trains without an interruption."""
    return weights(train(quick_recipe(images), tmp_path_factory.mktemp("quick") / "run", device="cpu").path)


@pytest.fixture(scope="session")
def random_weights(images: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the weights that `quick_recipe` with RANDOM trains without an interruption."""
    folder = tmp_path_factory.mktemp("random") / "run"
    return weights(train(quick_recipe(images, **RANDOM), folder, device="cpu").path)
