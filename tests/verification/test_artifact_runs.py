"""Artifact runs: what an artifact runs on, with which budgets, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import onnx
import pytest
from torch import nn

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError
from robust_export.export.exporter import export_onnx
from robust_export.recipe.schema import MIN_AGREEMENT, Verify
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.verification import artifact_runs
from robust_export.verification import verify as verify_module
from robust_export.verification.artifact_runs import ArtifactRun, open_artifacts
from robust_export.verification.report.verify_json import to_dict
from robust_export.verification.verify import verify
from tests.runtimes.v2_server import serve
from tests.verification.conftest import FAST, Verified

LENIENT = replace(
    FAST, max_drop=0.2,
    min_agreement={**MIN_AGREEMENT, "bf16": 0.8},  # some of the 48 noise images have almost equal logits
)  # fmt: skip


@pytest.fixture
def lower(full_bundle: Bundle, verified: Verified, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Return a bundle with files of all precisions and the results of the attacks on the reference model."""
    copytree(verified.path / "checkpoints", full_bundle.path / "checkpoints", dirs_exist_ok=True)
    monkeypatch.setattr(verify_module, "render", lambda report: "")
    return full_bundle


def open_one(bundle: Bundle, name: str | Path, settings: Verify = FAST, runtime: str = "auto") -> ArtifactRun:
    runs, not_run = open_artifacts(bundle, [bundle.path / name], runtime, settings, sparta_modules=11)
    assert not not_run
    (run,) = runs
    return run


def test_half_precision_runs_on_the_reference_evaluator(lower: Bundle) -> None:
    run = open_one(lower, "model.bf16.onnx", replace(FAST, iterations=100, queries=60))
    assert (run.settings.iterations, run.settings.queries, run.settings.ascent) == (10, 50, 5)
    assert any("judged on the ONNX reference evaluator" in note for note in run.notes)
    assert any("iterations 10, queries 50" in note for note in run.notes)


def test_half_precision_is_verified(lower: Bundle) -> None:
    report = verify(lower, ["model.bf16.onnx"], settings=LENIENT, device="cpu")
    (item,) = report.artifacts
    assert (item.file, item.runtime, item.precision) == ("model.bf16.onnx", "reference", "bf16")
    assert (item.budgets["iterations"], item.budgets["queries"], item.budgets["ascent"]) == (3, 30, 5)
    assert any("ascent 5" in note for note in item.notes)
    assert 0 < item.worst_case.max_abs < 1
    assert item.verdict == "pass", item.reasons


def test_artifact_without_a_runtime_is_undecided(lower: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_runs, "_open_reference_evaluator", lambda file: None)
    report = verify(lower, ["model.bf16.onnx"], settings=FAST, device="cpu")
    assert report.artifacts == []
    assert "bf16" in report.not_run["model.bf16.onnx"]
    assert report.verdict == "undecided"
    assert to_dict(report)["not_run"] == report.not_run


def test_chosen_runtime_must_run_the_file(lower: Bundle) -> None:
    with pytest.raises(ArtifactError, match="bf16"):
        open_one(lower, "model.bf16.onnx", runtime="onnxruntime")


def test_int8_runs_on_onnx_runtime(lower: Bundle) -> None:
    report = verify(lower, ["model.int8.onnx"], settings=LENIENT, device="cpu")
    (item,) = report.artifacts
    assert (item.runtime, item.precision) == ("onnxruntime", "int8")
    assert item.worst_case.max_abs > 1e-3
    assert item.bytes == (lower.path / "model.int8.onnx").stat().st_size
    assert set(item.latency) == {"1", "32"}


def test_served_model_has_the_limits_of_fp32(attacked: Bundle) -> None:
    classifier = OnnxRuntimeClassifier(attacked.file("model.onnx"), kernel=False)
    with serve(classifier, input_shape=classifier.input_shape, classes=classifier.classes) as base:
        url = f"{base}/v2/models/net"
        report = verify(attacked, [url], settings=FAST, device="cpu")
    (item,) = report.artifacts
    assert (item.file, item.sha256, item.bytes, item.runtime) == (url, None, None, "remote")
    assert item.verdict == "pass", item.reasons
    assert any("limits for fp32" in note for note in item.notes)


def test_served_model_of_other_images(bundle: Bundle) -> None:
    with (
        serve(lambda x: x[:, :10, 0, 0], input_shape=(12, 4, 4), classes=10) as base,
        pytest.raises(ArtifactError, match=r"takes images \[12, 4, 4\]"),
    ):
        open_artifacts(bundle, [f"{base}/v2/models/net"], "auto", FAST, 11)


@pytest.mark.parametrize(("size", "classes", "words"), [(16, 10, "images"), (8, 3, "classes")])
def test_file_of_other_images_or_classes(
    bundle: Bundle, tmp_path: Path, size: int, classes: int, words: str
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes)).eval()
    path = export_onnx(network, tmp_path / "other.onnx", size)
    with pytest.raises(ArtifactError, match=words):
        open_one(bundle, path)


def test_damaged_file_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"bad\.onnx"):
        open_one(bundle, tmp_path / "bad.onnx")
    model = onnx.load(bundle.file("model.onnx"))
    model.graph.node[3].op_type = "Nonsense"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ArtifactError, match=r"odd\.onnx"):
        open_one(bundle, tmp_path / "odd.onnx")


@pytest.mark.parametrize(
    ("file", "runtime", "words"),
    [
        ("model.onnx", "tensorrt", r"expected an \.onnx file, or an \.engine"),
        ("model.sm89.engine", "openvino", "is an engine, which openvino cannot run"),
        ("weights.safetensors", "auto", "cannot be verified on any runtime"),
    ],
)
def test_file_that_the_runtime_cannot_run(bundle: Bundle, file: str, runtime: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        open_one(bundle, file, runtime=runtime)
