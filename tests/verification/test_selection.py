"""Selection of artifacts: engines are verified only on a machine with their GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError
from robust_export.runtimes.tensorrt import classifier as tensorrt
from robust_export.runtimes.tensorrt import cuda
from robust_export.verification.report.verify_json import to_dict
from robust_export.verification.selection import select_artifacts
from robust_export.verification.verify import verify
from tests.runtimes.tensorrt.test_classifier import FACTS, Machine, machine  # noqa: F401 (a fixture)
from tests.verification.conftest import FAST


@pytest.fixture
def engines(bundle: Bundle) -> Bundle:
    """Return a bundle with engines for three kinds of GPU."""
    for capability in ("8.6", "8.9"):
        name = f"model.sm{capability.replace('.', '')}.engine"
        bundle.write({name: b"a plan"}, "engine", **FACTS | {"compute_capability": capability})
    options = {"version_compatible": False, "hardware_compatible": "ampere_plus"}
    facts = FACTS | {"compute_capability": "8.0", "options": options}
    bundle.write({"model.sm80.engine": b"a plan"}, "engine", **facts)
    return bundle


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int] | None], None]:
    """Return a function that sets the compute capability of this machine's GPU; None for no GPU."""
    return lambda capability: monkeypatch.setattr(tensorrt, "gpu_capability", lambda: capability)


def names(selected: list[Any]) -> list[str]:
    return [path.name for path in selected]


def test_engines_for_this_gpu(engines: Bundle, gpu: Callable[[tuple[int, int] | None], None]) -> None:
    gpu((8, 9))
    selected, elsewhere = select_artifacts(engines, [])
    assert names(selected) == ["model.onnx", "model.sm89.engine", "model.sm80.engine"]
    assert elsewhere.keys() == {"model.sm86.engine"}
    assert "8.6" in elsewhere["model.sm86.engine"]
    assert "8.9" in elsewhere["model.sm86.engine"]
    assert names(select_artifacts(engines, [], "tensorrt")[0]) == ["model.sm89.engine", "model.sm80.engine"]
    assert names(select_artifacts(engines, [], "openvino")[0]) == ["model.onnx"]


def test_no_gpu(engines: Bundle, gpu: Callable[[tuple[int, int] | None], None]) -> None:
    gpu(None)
    selected, elsewhere = select_artifacts(engines, [])
    assert names(selected) == ["model.onnx"]
    assert len(elsewhere) == 3
    with pytest.raises(BundleError, match=r"(?s)model\.sm86\.engine: .*robust-export tensorrt"):
        select_artifacts(engines, [], "tensorrt")
    assert names(select_artifacts(engines, ["model.sm86.engine"])[0]) == ["model.sm86.engine"]


def test_file_named_twice(bundle: Bundle) -> None:
    assert names(select_artifacts(bundle, ["model.onnx", "model.onnx"])[0]) == ["model.onnx"]


def test_missing_file(bundle: Bundle) -> None:
    with pytest.raises(ArtifactError, match=r"missing\.onnx does not exist"):
        select_artifacts(bundle, ["missing.onnx"])


def test_no_artifact(bundle: Bundle) -> None:
    del bundle.manifest["files"]["model.onnx"]
    with pytest.raises(BundleError, match="robust-export onnx"):
        select_artifacts(bundle, [])


def test_report_lists_engines_for_other_machines(
    attacked: Bundle, engines: Bundle, gpu: Callable[[tuple[int, int] | None], None]
) -> None:
    gpu(None)
    lines: list[str] = []
    report = verify(engines, settings=FAST, device="cpu", say=lines.append)
    assert report.verdict == "pass"
    assert to_dict(report)["elsewhere"].keys() == {f"model.sm{n}.engine" for n in (80, 86, 89)}
    assert any("not verified: model.sm89.engine: " in line for line in lines)


def test_engine_that_cannot_run_is_undecided(
    attacked: Bundle, engines: Bundle, gpu: Callable[[tuple[int, int] | None], None]
) -> None:
    gpu(None)
    report = verify(engines, ["model.onnx", "model.sm89.engine"], settings=FAST, device="cpu")
    assert report.verdict == "undecided"
    assert "CUDA" in report.not_run["model.sm89.engine"]


def test_engine_is_verified(
    attacked: Bundle,
    machine: Machine,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StandIn(cuda.CudaStream):
        def __init__(self) -> None:
            super().__init__(machine.cuda)

    monkeypatch.setattr(tensorrt, "CudaStream", StandIn)
    machine.engine.batches = (1, 64)
    report = verify(machine.bundle, ["model.sm89.engine"], settings=FAST, device="cpu")
    (item,) = report.artifacts
    assert (item.runtime, item.precision, item.verdict) == ("tensorrt", "fp32", "pass"), item.reasons
    assert item.fused_nodes == machine.engine.model.sparta_nodes
