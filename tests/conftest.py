"""What several tests share: a small recipe, a bundle trained by it, a linear network, the kernel."""

from __future__ import annotations

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # of this process, and of those that tests start; before torch

os.environ["ROBUST_EXPORT_ORT_LIBRARY"] = ""  # stock ONNX Runtime, but for the tests of the kernel

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_export import kernels
from robust_export.bundle import Bundle
from robust_export.errors import BuildError
from robust_export.export.bundle_onnx import export_bundle
from robust_export.recipe.recipe_file import merge, parse
from robust_export.recipe.schema import Recipe
from robust_export.runtimes.tensorrt.gpu_info import gpu
from robust_export.training.run import train

TINY: dict[str, dict[str, Any]] = {
    "model": {"name": "resnet10t_sparta", "image_size": 8, "channels": [8, 8, 16, 16], "stem_width": 8},
    "data": {"name": "digits", "shift": 1},
    "threat": {"eps": 0.1},
    "attack": {"steps": 2, "val_steps": 2},
    "train": {"epochs": 3, "batch_size": 128, "ema": 0.8},
    "verify": {"attacks": ["apgd-ce"], "iterations": 5, "queries": 20, "ascent": 5, "max_drop": 0.02},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where CUDA sees none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and gpu() is None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="not run: there is no NVIDIA GPU"))


def tiny_recipe(**sections: dict[str, Any]) -> Recipe:
    """Return the smallest recipe that still trains a Sparta network, with changes."""
    return parse(merge(TINY, sections), "test")


@pytest.fixture
def foreground() -> Iterator[None]:
    """Handle SIGINT as a command in the foreground does: one in the background inherits it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and exported bundle; read it only, or copy it (`bundle`)."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export_bundle(train(tiny_recipe(), folder, device="cpu"))
    return folder


@pytest.fixture
def bundle(trained: Path, tmp_path: Path) -> Bundle:
    """A bundle of one's own."""
    copytree(trained, tmp_path / "tiny")
    return Bundle.open(tmp_path / "tiny")


@dataclass(frozen=True)
class Linear:
    """A linear network, whose robustness has a closed form."""

    module: nn.Sequential  # [N, 3, 6, 6] to [N, 5]
    pixels: Tensor  # [N, 3, 6, 6], far enough from 0 and 1 that no clamp interferes
    labels: Tensor  # of the network itself, so that clean accuracy is 1

    def robust(self, eps: float, norm: str) -> Tensor:
        """Return which images no perturbation of the ball can break: [N] of bool.

        Class j overtakes y iff (w_y - w_j) x + b_y - b_j <= eps * ||w_y - w_j||, in the dual norm.
        """
        layer = self.module[1]
        assert isinstance(layer, nn.Linear)
        weight, logits = layer.weight.double(), self.module.double()(self.pixels.double())
        self.module.float()
        result = torch.ones(len(self.pixels), dtype=torch.bool)
        for i, y in enumerate(self.labels.tolist()):
            for j in range(5):
                if j != y:
                    dual = torch.linalg.vector_norm(weight[y] - weight[j], ord=1 if norm == "Linf" else 2)
                    result[i] &= bool(logits[i, y] - logits[i, j] > eps * dual)
        return result


@pytest.fixture
def linear() -> Linear:
    """A linear network with images around the middle of [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(108, 5))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        dict(module.named_parameters())["1.bias"].sub_(
            module(torch.full((1, 3, 6, 6), 0.5))[0]
        )  # a tie in the middle of the cube
    pixels = 0.5 + 0.2 * (torch.rand(40, 3, 6, 6, generator=generator) - 0.5)
    with torch.no_grad():
        labels = module(pixels).argmax(1)
    return Linear(module.eval(), pixels, labels)


@pytest.fixture(scope="session")
def built() -> Path:
    """The library for ONNX Runtime, built where it is not; skipped where it cannot be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ROBUST_EXPORT_ORT_LIBRARY")
        try:
            return kernels.ort_library() or kernels.build().path
        except BuildError as error:
            pytest.skip(str(error))


@pytest.fixture
def library(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, used by everything that runs in the test."""
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", str(built))
    return built
