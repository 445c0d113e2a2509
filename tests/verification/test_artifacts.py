"""What is judged, on what, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError
from robust_export.export.bundle_onnx import export_bundle
from robust_export.recipe.schema import MIN_AGREEMENT, Verify
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.verification import artifacts
from robust_export.verification.verify import verify
from tests.runtimes.v2_server import serve
from tests.verification.test_verify import FAST

CHEAP = replace(
    FAST, samples=48, max_drop=0.2,
    min_agreement={**MIN_AGREEMENT, "bf16": 0.8},  # of 48 images of noise some are as good as tied
)  # fmt: skip


@pytest.fixture
def half(bundle: Bundle) -> Bundle:
    """A bundle that holds a bfloat16 file alone."""
    export_bundle(bundle, None, "bf16")
    del bundle.manifest["files"]["model.onnx"]
    return bundle


def test_half_precision_is_judged_by_the_reference_evaluator_with_stated_budgets(half: Bundle) -> None:
    report = verify(half, settings=replace(CHEAP, iterations=100, queries=60), device="cpu", write=False)
    (item,) = report.artifacts
    assert (item.file, item.runtime, item.precision) == ("model.bf16.onnx", "reference", "bf16")
    assert (item.budgets["iterations"], item.budgets["queries"]) == (10, 50)
    assert any("reference evaluator judges" in note for note in item.notes)
    assert any("iterations 10, queries 50" in note for note in item.notes)
    assert 0 < item.worst_case.max_abs < 1
    assert item.verdict == "pass", item.reasons


def test_what_nothing_can_run_is_said_and_leaves_the_verdict_open(
    half: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "_reference", lambda *given: None)
    report = verify(half, settings=CHEAP, device="cpu", write=False)
    assert report.artifacts == []
    assert "bf16" in report.not_run["model.bf16.onnx"]
    assert report.verdict == "undecided"
    assert report.to_dict()["not_run"] == report.not_run


def test_a_runtime_that_is_asked_for_and_cannot_is_an_error(half: Bundle) -> None:
    with pytest.raises(ArtifactError, match="bf16"):
        verify(half, runtime="onnxruntime", settings=CHEAP, device="cpu", write=False)


def test_int8_is_judged_as_onnx_runtime_runs_it(bundle: Bundle) -> None:
    export_bundle(bundle, None, "int8")
    report = verify(bundle, ["model.int8.onnx"], settings=CHEAP, device="cpu", write=False)
    (item,) = report.artifacts
    assert (item.runtime, item.precision) == ("onnxruntime", "int8")
    assert item.worst_case.max_abs > 1e-3
    assert item.bytes == (bundle.path / "model.int8.onnx").stat().st_size
    assert set(item.latency) == {"1", "32"}


def test_a_served_model_is_judged_by_the_gates_of_fp32(bundle: Bundle) -> None:
    good = OnnxRuntimeClassifier(bundle.file("model.onnx"), kernel=False)
    with serve(good, plane=good.plane, classes=good.classes) as base:
        url = f"{base}/v2/models/net"
        report = verify(bundle, [url], settings=CHEAP, device="cpu", write=False)
    (item,) = report.artifacts
    assert (item.file, item.sha256, item.bytes, item.runtime) == (url, None, None, "remote")
    assert item.verdict == "pass", item.reasons
    assert any("gates of fp32" in note for note in item.notes)


def test_a_served_model_of_other_images_is_refused(bundle: Bundle) -> None:
    with (
        serve(lambda x: x[:, :10, 0, 0], plane=(12, 4, 4), classes=10) as base,
        pytest.raises(ArtifactError, match=r"takes images \[12, 4, 4\]"),
    ):
        verify(bundle, [f"{base}/v2/models/net"], settings=CHEAP, device="cpu", write=False)


def test_a_damaged_file_is_an_error_and_not_merely_not_run(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"bad\.onnx"):
        verify(bundle, [tmp_path / "bad.onnx"], settings=Verify(), device="cpu", write=False)
    model = onnx.load(bundle.file("model.onnx"))
    model.graph.node[3].op_type = "Nonsense"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ArtifactError, match=r"odd\.onnx"):
        verify(bundle, [tmp_path / "odd.onnx"], settings=Verify(), device="cpu", write=False)
