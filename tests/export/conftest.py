"""Networks that several tests of the export share, exported once per test run."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from robust_export.export.exporter import export_onnx
from tests.conftest import OncePerRun
from tests.export.networks import tiny_resnet


@pytest.fixture(scope="session")
def exported(once_per_run: OncePerRun) -> Path:
    """Return the file of `tiny_resnet` at the default opset: read only."""
    return (
        once_per_run("exported", lambda folder: export_onnx(tiny_resnet(), folder / "m.onnx", 16)) / "m.onnx"
    )


@pytest.fixture(scope="session")
def exported_opset22(once_per_run: OncePerRun) -> onnx.ModelProto:
    """Return `tiny_resnet` at opset 22, which has a bfloat16 Conv: read only."""
    folder = once_per_run(
        "exported-22", lambda folder: export_onnx(tiny_resnet(), folder / "m.onnx", 16, opset=22)
    )
    return onnx.load(folder / "m.onnx")
