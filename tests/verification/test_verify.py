"""Verification end to end: a faithful artifact passes, a sabotaged one fails for the right reason."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import onnx
import pytest

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError
from robust_export.recipe.schema import Threat, Verify
from robust_export.verification.results import ArtifactReport, Report
from robust_export.verification.verify import verify

FAST = Verify(attacks=("apgd-ce",), iterations=3, queries=10, ascent=3, samples=96, max_drop=0.1)


MULTIPLES = [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4]


@pytest.fixture(scope="module")
def report(trained: Path) -> Report:
    return verify(trained, settings=FAST, device="cpu", write=False)


def test_a_faithful_artifact_passes(report: Report) -> None:
    assert report.verdict == "pass"
    (item,) = report.artifacts
    assert item.reasons == []
    assert set(item.parity) == {"clean", "adversarial", "noise"}
    assert all(p.max_abs < 1e-4 and p.top1_agreement == 1 for p in item.parity.values())
    assert item.robust_drop.drop == 0
    assert item.sparta_nodes == 11


def test_accuracies_are_those_of_the_examples(report: Report) -> None:
    source, (item,) = report.source, report.artifacts
    assert report.samples == 96
    assert source.robust.value <= source.attacks["apgd-ce"] <= source.clean.value
    assert [point.eps for point in source.curve] == pytest.approx([0.1 * r for r in MULTIPLES])
    accuracies = [point.accuracy for point in source.curve]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == source.clean.value
    assert accuracies[MULTIPLES.index(1)] == source.robust.value
    assert item.curve == source.curve
    after = list(item.attacks.values())
    assert after == sorted(after, reverse=True)
    assert after[-1] >= item.robust.value
    assert item.clean == source.clean
    assert item.robust == source.robust
    low, high = source.robust.ci95
    assert low < source.robust.value < high


def timeless(item: ArtifactReport) -> ArtifactReport:
    return replace(item, latency={})


def test_it_is_repeatable(trained: Path, report: Report) -> None:
    again = verify(trained, settings=FAST, device="cpu", write=False)
    assert [timeless(item) for item in again.artifacts] == [timeless(item) for item in report.artifacts]
    assert again.source == report.source


def test_command_in_report_repeats_the_call(bundle: Bundle, tmp_path: Path) -> None:
    report = verify(bundle, ["model.onnx"], settings=FAST, device="cpu", write=False)
    script = tmp_path / "again.py"
    imports = "import robust_export\nfrom robust_export.recipe.schema import Threat, Verify\n"
    script.write_text(f"{imports}report = {report.command}\n")
    again = runpy.run_path(str(script))["report"]
    assert again.command == report.command
    assert again.source == report.source


def test_a_file_that_is_named_twice_is_judged_once(trained: Path) -> None:
    again = verify(trained, ["model.onnx", "model.onnx"], settings=FAST, device="cpu", write=False)
    assert len(again.artifacts) == 1


def test_a_ball_that_holds_every_image_is_attacked_once(trained: Path) -> None:
    wide = verify(
        trained, settings=replace(FAST, samples=20), threat=Threat("Linf", 0.5), device="cpu", write=False
    )
    assert [point.eps for point in wide.source.curve] == [0, 0.125, 0.25, 0.375, 0.5, 0.75, 1]
    none = verify(
        trained, settings=replace(FAST, samples=20), threat=Threat("Linf", 0), device="cpu", write=False
    )
    assert [point.eps for point in none.source.curve] == [0]


def test_a_larger_ball_leaves_fewer_images_standing(trained: Path, report: Report) -> None:
    wider = verify(trained, settings=FAST, threat=Threat("Linf", 0.4), device="cpu", write=False)
    assert wider.threat.eps == 0.4
    assert wider.source.robust.value < report.source.robust.value
    assert wider.source.clean == report.source.clean


def test_verify_json_has_the_keys_that_readers_rely_on(bundle: Bundle) -> None:
    verify(bundle, settings=FAST, device="cpu")
    value = json.loads((bundle.path / "verify.json").read_text())
    assert value["schema"] == 1
    assert value["threat"] == {"norm": "Linf", "eps": 0.1}
    assert {"model", "samples", "source", "artifacts"} <= value.keys()
    assert {"clean_accuracy", "robust_accuracy", "attacks"} <= value["source"].keys()
    (item,) = value["artifacts"]
    assert {
        "file", "runtime", "precision", "fused_nodes", "sparta_nodes", "parity", "clean_accuracy",
        "robust_accuracy", "attacks", "drop", "drop_ci95", "verdict", "samples_needed", "reasons",
    } <= item.keys()  # fmt: skip
    assert {"clean", "adversarial", "noise", "worst_case"} == item["parity"].keys()
    assert {"max_abs", "flips", "flip_margin", "evaluations"} <= item["parity"]["worst_case"].keys()
    assert {"transfer", "bpda", "square"} <= item["attacks"].keys()
    assert {"max_abs", "mean_abs", "cosine", "top1_agreement"} <= item["parity"]["adversarial"].keys()
    files = Bundle.open(bundle.path).manifest["files"]
    assert files["verify.json"]["kind"] == files["report.html"]["kind"] == "report"
    assert not list(bundle.path.glob("checkpoints/verify-*"))


def test_too_few_images_cannot_pass(trained: Path) -> None:
    report = verify(trained, settings=replace(FAST, samples=50, max_drop=0.02), device="cpu", write=False)
    assert report.samples == 50
    assert report.verdict == "undecided"
    assert report.artifacts[0].robust_drop.samples_needed == 217
    assert all(
        "undecided: 167 more samples needed (217 samples" in line for line in report.artifacts[0].reasons
    )


Edit = Callable[[onnx.ModelProto], None]


def drop_the_relu(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.functions[0].node if n.op_type == "Relu")
    node.op_type = "Identity"


def pad_on_the_other_side(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.functions[0].node if n.op_type == "Conv")
    padding = next(a for a in node.attribute if a.name == "auto_pad")
    padding.s = b"SAME_LOWER"  # the same for an odd kernel: no sabotage at all


def test_a_rewritten_but_equal_artifact_passes(bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.file("model.onnx"))
    pad_on_the_other_side(model)
    onnx.save(model, tmp_path / "same.onnx")
    report = verify(bundle, [tmp_path / "same.onnx"], settings=FAST, device="cpu", write=False)
    assert report.verdict == "pass"


def test_one_bad_artifact_spoils_the_verdict(bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.file("model.onnx"))
    drop_the_relu(model)
    onnx.save(model, tmp_path / "bad.onnx")
    report = verify(bundle, ["model.onnx", tmp_path / "bad.onnx"], settings=FAST, device="cpu", write=False)
    assert [item.verdict for item in report.artifacts] == ["pass", "fail"]
    assert report.verdict == "fail"


# --- files that are not artifacts of this model ---


def relabel(model: onnx.ModelProto) -> None:
    (entry,) = (e for e in model.metadata_props if e.key == "robust_export.labels")
    entry.value = json.dumps(list("abcdefghij"))


def lose_the_op(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Sparta":
            node.domain, node.op_type = "", "Relu"
            del node.input[1:], node.attribute[:]
    del model.functions[:]


@pytest.mark.parametrize(
    ("change", "words"), [(relabel, "other labels"), (lose_the_op, "no ai.sparta::Sparta")]
)
def test_a_file_of_another_model_is_refused(bundle: Bundle, tmp_path: Path, change: Edit, words: str) -> None:
    model = onnx.load(bundle.file("model.onnx"))
    change(model)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match=words):
        verify(bundle, [tmp_path / "other.onnx"], settings=FAST, device="cpu", write=False)


def test_other_images_or_classes_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    from robust_export.export.exporter import export_onnx
    from robust_export.nn.models import create_model

    options: dict[str, Any] = {"channels": [8, 8, 8, 8], "stem_width": 8}
    for number, (classes, size) in enumerate([(10, 16), (3, 8)]):
        other = create_model("resnet10t_sparta", classes, size, **options)
        path = export_onnx(other, tmp_path / f"{number}.onnx", size)
        with pytest.raises(ArtifactError, match=r"images|classes"):
            verify(bundle, [path], settings=FAST, device="cpu", write=False)


def test_no_artifact_yet(bundle: Bundle) -> None:
    del bundle.manifest["files"]["model.onnx"]
    with pytest.raises(BundleError, match="robust-export onnx"):
        verify(bundle, settings=FAST, write=False)


@pytest.mark.parametrize("name", ["missing.onnx", "recipe.toml"])
def test_artifacts_that_are_none(bundle: Bundle, name: str) -> None:
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        verify(bundle, [name], settings=FAST, write=False)


def test_an_artifact_from_outside_is_judged_and_one_inside_is_refused_when_altered(
    bundle: Bundle, tmp_path: Path
) -> None:
    outside = tmp_path / "copy.onnx"
    copyfile(bundle.path / "model.onnx", outside)
    assert verify(bundle, [outside], settings=FAST, device="cpu", write=False).verdict == "pass"
    inside = bundle.path / "model.onnx"
    inside.write_bytes(inside.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        verify(bundle.path, settings=FAST, write=False)
