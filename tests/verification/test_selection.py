"""Which artifacts are judged: engines only where their GPU is."""

from __future__ import annotations

from typing import Any

import pytest

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError
from robust_export.runtimes.tensorrt import classifier as tensorrt
from robust_export.verification import artifacts
from robust_export.verification.selection import listed
from robust_export.verification.verify import verify
from tests.runtimes.tensorrt.test_classifier import FACTS, Machine, machine  # noqa: F401 (a fixture)
from tests.verification.test_artifacts import CHEAP


@pytest.fixture
def engines(bundle: Bundle) -> Bundle:
    """A bundle with engines for three kinds of GPU."""
    for capability in ("8.6", "8.9"):
        name = f"model.sm{capability.replace('.', '')}.engine"
        bundle.write({name: b"a plan"}, "engine", **FACTS | {"compute_capability": capability})
    options = {"version_compatible": False, "hardware_compatible": "ampere_plus"}
    facts = FACTS | {"compute_capability": "8.0", "options": options}
    bundle.write({"model.sm80.engine": b"a plan"}, "engine", **facts)
    return bundle


def names(found: list[Any]) -> list[str]:
    return [path.name for path in found]


def test_engines_are_judged_where_their_gpu_is(engines: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpu", lambda: (8, 9))
    found, elsewhere = listed(engines, [])
    assert names(found) == ["model.onnx", "model.sm89.engine", "model.sm80.engine"]
    assert elsewhere.keys() == {"model.sm86.engine"}
    assert "compute capability 8.6, and this machine's has 8.9" in elsewhere["model.sm86.engine"]
    assert names(listed(engines, [], "tensorrt")[0]) == ["model.sm89.engine", "model.sm80.engine"]
    assert names(listed(engines, [], "openvino")[0]) == ["model.onnx"]


def test_without_a_gpu_none_is(engines: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpu", lambda: None)
    found, elsewhere = listed(engines, [])
    assert names(found) == ["model.onnx"]
    assert len(elsewhere) == 3
    with pytest.raises(BundleError, match=r"(?s)model\.sm86\.engine: it is for .*robust-export tensorrt"):
        listed(engines, [], "tensorrt")
    assert names(listed(engines, ["model.sm86.engine"])[0]) == ["model.sm86.engine"]  # whoever asks for it


def test_the_report_says_what_others_must_judge(engines: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpu", lambda: None)
    said: list[str] = []
    report = verify(engines, settings=CHEAP, device="cpu", say=said.append)
    assert report.verdict == "pass"
    assert report.to_dict()["elsewhere"].keys() == {f"model.sm{n}.engine" for n in (80, 86, 89)}
    assert any("not judged: model.sm89.engine: it is for GPUs" in line for line in said)
    assert "model.sm89.engine" in (engines.path / "report.html").read_text()


def test_an_engine_that_was_asked_for_and_cannot_run_leaves_the_verdict_open(
    engines: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_export.runtimes.tensorrt.classifier.gpu", lambda: None)
    report = verify(engines, ["model.onnx", "model.sm89.engine"], settings=CHEAP, device="cpu", write=False)
    assert report.verdict == "undecided"
    assert "CUDA sees none here" in report.not_run["model.sm89.engine"]


def test_an_engine_is_judged_as_any_artifact(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from robust_export.runtimes.tensorrt import cuda

    class OnStandIn(cuda.Cuda):
        def __init__(self) -> None:
            super().__init__(machine.cuda)

    monkeypatch.setattr("robust_export.runtimes.tensorrt.classifier.Cuda", OnStandIn)
    machine.engine.batches = (1, 64)
    report = verify(machine.bundle, ["model.sm89.engine"], settings=CHEAP, device="cpu", write=False)
    (item,) = report.artifacts
    assert (item.runtime, item.precision, item.verdict) == ("tensorrt", "fp32", "pass"), item.reasons
    assert item.fused_nodes == machine.engine.model.sparta_nodes


@pytest.mark.parametrize(
    ("file", "runtime", "words"),
    [
        ("model.onnx", "tensorrt", r"expected an \.onnx file, or an \.engine"),
        ("model.sm89.engine", "openvino", "is an engine, which openvino cannot run"),
        ("weights.safetensors", "auto", "cannot be verified on any runtime"),
    ],
)
def test_files_that_a_runtime_does_not_take(engines: Bundle, file: str, runtime: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        artifacts.subjects(engines, [engines.file(file)], runtime, CHEAP, 1)
