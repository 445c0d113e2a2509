"""Fixtures for all tests: trained bundles, a linear network, the native libraries.

A session fixture is made once per xdist worker. What takes more than a second is made by `once_per_run`
instead: by the worker that needs it first, in a folder that all workers share.
"""

from __future__ import annotations

import importlib.util
import os
import signal

# Set before torch is imported; child processes inherit both.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ROBUST_EXPORT_ORT_LIBRARY"] = ""  # stock ONNX Runtime unless a test uses the fixture `library`

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, TypeAlias

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from robust_export import kernels
from robust_export.bundle import ONNX_FILES, Bundle
from robust_export.errors import BuildError
from robust_export.export.bundle_onnx import export_bundle
from robust_export.export.calibration import Calibration
from robust_export.recipe.recipe_file import merge, parse
from robust_export.recipe.schema import Recipe
from robust_export.runtimes.tensorrt.gpu_info import gpu_capability
from robust_export.runtimes.tensorrt.variants import Variant, load_variant
from robust_export.training.run import train
from robust_export.utils.timing import measure
from robust_export.verification import evaluate

TINY: dict[str, dict[str, Any]] = {
    "model": {"name": "resnet10t_sparta", "image_size": 8, "channels": [8, 8, 16, 16], "stem_width": 8},
    "data": {"name": "digits", "shift": 1},
    "threat": {"eps": 0.1},
    "attack": {"steps": 2, "val_steps": 2},
    "train": {"epochs": 3, "batch_size": 128, "ema": 0.8},
    "verify": {"attacks": ["apgd-ce"], "iterations": 5, "queries": 20, "ascent": 5, "max_drop": 0.02},
}


SLOW_FILES = (
    "kernels/test_core.py",
    "test_tutorial.py",
    "kernels/test_building.py",
    "kernels/test_tensorrt_plugin.py",
    "runtimes/test_ort_blocked.py",
    "kernels/test_tensorrt_build.py",
    "kernels/test_cubins.py",
    "verification/test_fault_cases.py",
    "training/test_distributed.py",
)
"""The slowest test files, slowest first. They start first, so that no worker ends long after the others."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start slow files first, and skip tests marked `gpu` if there is no NVIDIA GPU."""
    order = {config.rootpath / "tests" / name: i for i, name in enumerate(SLOW_FILES)}
    if missing := [path for path in order if not path.is_file()]:
        raise pytest.UsageError(f"SLOW_FILES in tests/conftest.py names {missing[0]}, which does not exist")
    items.sort(key=lambda item: order.get(item.path, len(order)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and gpu_capability() is None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="not run: there is no NVIDIA GPU"))


def tiny_recipe(**sections: dict[str, Any]) -> Recipe:
    """Return the recipe TINY, which trains a Sparta network in seconds, with changes by section."""
    return parse(merge(TINY, sections), "test")


@pytest.fixture
def foreground() -> Iterator[None]:
    """Handle SIGINT as a foreground process does; a background process inherits it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


OncePerRun: TypeAlias = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once_per_run(tmp_path_factory: pytest.TempPathFactory) -> OncePerRun:
    """Return a function (name, make) -> folder that calls make(folder) once for all xdist workers.

    The folder exists and is empty when `make` is called, and must not be written to afterwards. It gets its
    final name only when `make` has returned, so an error leaves nothing and the next worker tries again.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, unfinished = root / name, root / f"{name}.unfinished"
        with FileLock(root / f"{name}.lock"):
            if not folder.is_dir():
                rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return once


@pytest.fixture(scope="session")
def trained(once_per_run: OncePerRun) -> Path:
    """Return a trained bundle with model.onnx: read only, shared by all workers; `bundle` is a copy."""

    def make(folder: Path) -> None:
        export_bundle(train(tiny_recipe(), folder / "tiny", device="cpu"))

    return once_per_run("trained", make) / "tiny"


@pytest.fixture
def bundle(trained: Path, tmp_path: Path) -> Bundle:
    """Return a copy of `trained` that the test may change."""
    return Bundle.open(copytree(trained, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def all_precisions(trained: Path, once_per_run: OncePerRun) -> Path:
    """Return `trained` with ONNX files of every precision: read only, shared; `full_bundle` is a copy."""

    def make(folder: Path) -> None:
        copytree(trained, folder / "tiny")
        for precision in list(ONNX_FILES)[1:]:
            calibration = Calibration("both", 500) if precision == "int8" else None
            export_bundle(Bundle.open(folder / "tiny"), precision=precision, calibration=calibration)

    return once_per_run("precisions", make) / "tiny"


@pytest.fixture
def full_bundle(all_precisions: Path, tmp_path: Path) -> Bundle:
    """Return a copy of `all_precisions` that the test may change."""
    return Bundle.open(copytree(all_precisions, tmp_path / "tiny"))


@pytest.fixture(scope="session", autouse=True)
def _quick_latency() -> Iterator[None]:
    """Let `verify` measure an artifact's latency by a few calls, not by calls for a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "measure", partial(measure, warm_up=0, min_time=0))
        yield


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
def rtx() -> Variant:
    """Return TensorRT for RTX; skip if it is not installed, fail if it is and does not load."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    return load_variant("rtx")


@pytest.fixture(scope="session")
def plugin() -> Path:
    """Return the TensorRT plugin library; skip if it was not built."""
    found = kernels.trt_library()
    if found is None:
        pytest.skip(kernels.why_no_trt_library())
    return found


@pytest.fixture(scope="session")
def built() -> Path:
    """Return the ONNX Runtime library; build it if needed, skip if it cannot be built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ROBUST_EXPORT_ORT_LIBRARY")
        try:
            return kernels.ort_library() or kernels.build().path
        except BuildError as error:
            pytest.skip(str(error))


@pytest.fixture
def library(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the test use the ONNX Runtime library; return its path."""
    monkeypatch.setenv("ROBUST_EXPORT_ORT_LIBRARY", str(built))
    return built
