"""Verification end to end: a correct artifact passes, a faulty one fails, results are repeatable."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfile, copytree

import onnx
import pytest

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError
from robust_export.recipe.schema import Threat, Verify
from robust_export.verification.results import ArtifactReport, Report
from robust_export.verification.verify import verify
from tests.verification.conftest import FAST, Verified

RADII = [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4]  # in units of the threat's eps


@pytest.fixture(scope="module")
def report(verified: Verified) -> Report:
    return verified.report


def test_correct_artifact_passes(report: Report) -> None:
    assert report.verdict == "pass"
    (item,) = report.artifacts
    assert item.reasons == []
    assert set(item.parity) == {"clean", "adversarial", "noise"}
    assert all(p.max_abs < 1e-4 and p.top1_agreement == 1 for p in item.parity.values())
    assert item.robust_drop.drop == 0
    assert item.sparta_nodes == 11


def test_accuracies_are_consistent(report: Report) -> None:
    reference, (item,) = report.reference, report.artifacts
    assert report.samples == 48
    assert reference.robust.value <= reference.attacks["apgd-ce"] <= reference.clean.value
    assert [point.eps for point in reference.curve] == pytest.approx([0.1 * r for r in RADII])
    accuracies = [point.accuracy for point in reference.curve]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == reference.clean.value
    assert accuracies[RADII.index(1)] == reference.robust.value
    assert item.curve == reference.curve
    cumulative = list(item.attacks.values())
    assert cumulative == sorted(cumulative, reverse=True)
    assert cumulative[-1] >= item.robust.value
    assert item.clean == reference.clean
    assert item.robust == reference.robust
    low, high = reference.robust.ci95
    assert low < reference.robust.value < high


def without_latency(item: ArtifactReport) -> ArtifactReport:
    return replace(item, latency={})


def test_verification_is_repeatable(trained: Path, report: Report) -> None:
    again = verify(trained, settings=FAST, device="cpu", write=False)
    assert [without_latency(item) for item in again.artifacts] == [
        without_latency(item) for item in report.artifacts
    ]
    assert again.reference == report.reference


def test_command_repeats_the_call(attacked: Bundle) -> None:
    report = verify(attacked, ["model.onnx"], settings=FAST, device="cpu")
    call = ast.parse(report.command, mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.unparse(call.func) == "robust_export.verify"
    assert [ast.literal_eval(arg) for arg in call.args] == [str(attacked.path), ["model.onnx"]]
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    settings, threat = keywords.pop("settings"), keywords.pop("threat")
    assert isinstance(settings, ast.Call)
    assert isinstance(threat, ast.Call)
    assert Verify(**{str(k.arg): ast.literal_eval(k.value) for k in settings.keywords}) == FAST
    assert Threat(**{str(k.arg): ast.literal_eval(k.value) for k in threat.keywords}) == report.threat
    values = {name: ast.literal_eval(value) for name, value in keywords.items()}
    assert values == {"runtime": "auto", "device": "cpu", "data_dir": None}


def test_ball_that_holds_every_image(trained: Path, report: Report) -> None:
    wider = verify(trained, settings=FAST, threat=Threat("Linf", 0.5), device="cpu", write=False)
    assert wider.threat.eps == 0.5
    assert [point.eps for point in wider.reference.curve] == [0, 0.125, 0.25, 0.375, 0.5, 0.75, 1]
    assert wider.reference.robust.value < report.reference.robust.value
    assert wider.reference.clean == report.reference.clean


def test_eps_0(trained: Path) -> None:
    settings = replace(FAST, samples=8)
    report = verify(trained, settings=settings, threat=Threat("Linf", 0), device="cpu", write=False)
    assert [point.eps for point in report.reference.curve] == [0]


def test_written_files(bundle: Bundle, verified: Verified) -> None:
    copytree(verified.path / "checkpoints", bundle.path / "checkpoints", dirs_exist_ok=True)
    verify(bundle, settings=FAST, device="cpu")
    value = json.loads((bundle.path / "verify.json").read_text())
    assert value["schema"] == 1
    assert value["threat"] == {"norm": "Linf", "eps": 0.1}
    assert list(value) == [
        "schema", "model", "threat", "samples", "verdict", "gates", "source", "artifacts", "not_run",
        "elsewhere", "seconds", "command", "provenance",
    ]  # fmt: skip
    assert list(value["source"]) == [
        "clean_accuracy", "clean_accuracy_ci95", "robust_accuracy", "robust_accuracy_ci95", "attacks",
        "budgets", "flags", "logit_scale", "median_margin", "guards", "curve",
    ]  # fmt: skip
    assert list(value["seconds"]) == ["attack the source", "attack model.onnx on onnxruntime", "compare"]
    (item,) = value["artifacts"]
    assert list(item) == [
        "file", "sha256", "bytes", "runtime", "precision", "fused_nodes", "sparta_nodes", "parity",
        "clean_accuracy", "clean_accuracy_ci95", "robust_accuracy", "robust_accuracy_ci95", "attacks",
        "budgets", "drop", "drop_ci95", "clean_drop", "clean_drop_ci95", "verdict", "samples_needed",
        "reasons", "notes", "guards", "curve", "drift", "latency",
    ]  # fmt: skip
    assert list(item["parity"]) == ["clean", "adversarial", "noise", "worst_case"]
    assert list(item["parity"]["adversarial"]) == [
        "max_abs", "mean_abs", "cosine", "top1_agreement", "non_finite",
    ]  # fmt: skip
    worst = item["parity"]["worst_case"]
    assert list(worst) == ["max_abs", "flips", "flip_margin", "evaluations", "random", "at_risk"]
    assert list(item["attacks"]) == ["transfer", "bpda", "square", "worst_case"]
    assert list(item["drift"][0]) == ["site", "drift"]
    assert list(item["guards"][0]) == ["name", "outcome", "evidence"]
    files = Bundle.open(bundle.path).manifest["files"]
    assert files["verify.json"]["kind"] == files["report.html"]["kind"] == "report"
    assert "How to read this" in (bundle.path / "report.html").read_text()
    assert not list(bundle.path.glob("checkpoints/verify-*"))


def test_too_few_images_cannot_pass(attacked: Bundle) -> None:
    report = verify(attacked, settings=replace(FAST, max_drop=0.02), device="cpu")
    assert report.verdict == "undecided"
    (item,) = report.artifacts
    assert item.robust_drop.samples_needed == 217
    (reason,) = item.reasons
    assert reason.startswith("undecided: 169 more samples needed (217 in all")


Edit = Callable[[onnx.ModelProto], None]


def remove_relu(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.functions[0].node if n.op_type == "Relu")
    node.op_type = "Identity"


def pad_lower(model: onnx.ModelProto) -> None:
    """Pad by SAME_LOWER, which equals SAME_UPPER for an odd kernel."""
    (node,) = (n for n in model.functions[0].node if n.op_type == "Conv")
    padding = next(a for a in node.attribute if a.name == "auto_pad")
    padding.s = b"SAME_LOWER"


def test_rewritten_but_equal_artifact_passes(attacked: Bundle, tmp_path: Path) -> None:
    model = onnx.load(attacked.file("model.onnx"))
    pad_lower(model)
    onnx.save(model, tmp_path / "same.onnx")
    report = verify(attacked, [tmp_path / "same.onnx"], settings=FAST, device="cpu")
    assert report.verdict == "pass"


def test_one_faulty_artifact_fails_the_report(attacked: Bundle, tmp_path: Path) -> None:
    model = onnx.load(attacked.file("model.onnx"))
    remove_relu(model)
    onnx.save(model, tmp_path / "bad.onnx")
    report = verify(attacked, ["model.onnx", tmp_path / "bad.onnx"], settings=FAST, device="cpu")
    assert [item.verdict for item in report.artifacts] == ["pass", "fail"]
    assert report.verdict == "fail"


def relabel(model: onnx.ModelProto) -> None:
    (entry,) = (e for e in model.metadata_props if e.key == "robust_export.labels")
    entry.value = json.dumps(list("abcdefghij"))


def replace_sparta_by_relu(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Sparta":
            node.domain, node.op_type = "", "Relu"
            del node.input[1:], node.attribute[:]
    del model.functions[:]


@pytest.mark.parametrize(
    ("change", "words"), [(relabel, "other labels"), (replace_sparta_by_relu, "no ai.sparta::Sparta")]
)
def test_file_of_another_model_is_refused(bundle: Bundle, tmp_path: Path, change: Edit, words: str) -> None:
    model = onnx.load(bundle.file("model.onnx"))
    change(model)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match=words):
        verify(bundle, [tmp_path / "other.onnx"], settings=FAST, device="cpu", write=False)


def test_file_that_is_no_artifact(bundle: Bundle) -> None:
    with pytest.raises(ArtifactError, match=r"recipe\.toml"):
        verify(bundle, ["recipe.toml"], settings=FAST, write=False)


def test_file_outside_the_bundle(attacked: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "copy.onnx"
    copyfile(attacked.path / "model.onnx", outside)
    assert verify(attacked, [outside], settings=FAST, device="cpu").verdict == "pass"


def test_altered_file_in_the_bundle_is_refused(bundle: Bundle) -> None:
    inside = bundle.path / "model.onnx"
    inside.write_bytes(inside.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        verify(bundle.path, settings=FAST, write=False)
