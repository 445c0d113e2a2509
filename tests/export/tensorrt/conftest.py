"""What the tests of engines share: a bundle in every precision, TensorRT for RTX, the plugin."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from shutil import copytree

import pytest

from robust_export import kernels
from robust_export.bundle import FILES, Bundle
from robust_export.export.bundle_onnx import export_bundle
from robust_export.export.calibration import Calibration
from robust_export.runtimes.tensorrt.variants import Variant, find


@pytest.fixture(scope="session")
def rtx() -> Variant:
    """TensorRT for RTX; that it is installed and cannot be used is a failure."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    return find("rtx")


@pytest.fixture(scope="session")
def plugin() -> Path:
    """The plugin library."""
    found = kernels.trt_library()
    if found is None:
        pytest.skip(kernels.why_no_trt_library())
    return found


@pytest.fixture(scope="session")
def precisions(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained bundle with ONNX files of every precision; read it only, or copy it (`whole`)."""
    folder = tmp_path_factory.mktemp("precisions") / "tiny"
    copytree(trained, folder)
    for precision in list(FILES)[1:]:
        calibration = Calibration(samples=64) if precision == "int8" else None
        export_bundle(Bundle.open(folder), precision=precision, calibration=calibration)
    return folder


@pytest.fixture
def whole(precisions: Path, tmp_path: Path) -> Bundle:
    """Such a bundle of one's own."""
    copytree(precisions, tmp_path / "tiny")
    return Bundle.open(tmp_path / "tiny")
