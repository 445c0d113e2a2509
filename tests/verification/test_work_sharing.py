"""An interrupted or shared verification gives the result of a single complete one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.nn.load import load
from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.utils.work_items import Arrays, WorkItems
from robust_export.verification import verify as verify_module
from robust_export.verification.artifact_runs import ArtifactRun
from robust_export.verification.attack_artifact import attack_images
from robust_export.verification.setup import Setup
from robust_export.verification.verify import verify
from tests.processes import command_line, run_cli, run_ranks
from tests.runtimes.v2_server import serve
from tests.verification.conftest import FAST
from tests.verification.test_verify import without_latency

TWO_BATCHES = replace(FAST, samples=16, batch_size=8, queries=10, ascent=3)
RUN_FACTS = ("seconds", "provenance", "command")  # of a run, not of its result


def results(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((path / "verify.json").read_text())
    for item in value["artifacts"]:
        del item["latency"]
    return {key: entry for key, entry in value.items() if key not in RUN_FACTS}


def test_interrupted_verification_resumes(
    bundle: Bundle, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = verify(trained, settings=TWO_BATCHES, device="cpu", write=False)
    monkeypatch.setattr(verify_module, "render", lambda report: "")
    run, done = WorkItems.run, 0

    def stop_after(most: int) -> Callable[..., list[Arrays]]:
        def stopping(
            self: WorkItems, stage: str, compute: Callable[[int], Arrays], count: int, **options: Any
        ) -> list[Arrays]:
            def counted(i: int) -> Arrays:
                nonlocal done
                if done == most:
                    raise KeyboardInterrupt
                done += 1
                return compute(i)

            return run(self, stage, counted, count, **options)

        return stopping

    monkeypatch.setattr(WorkItems, "run", stop_after(25))
    with pytest.raises(KeyboardInterrupt):
        verify(bundle, settings=TWO_BATCHES, device="cpu")
    assert len(list(bundle.path.glob("checkpoints/verify-*/*.safetensors"))) == 25
    assert not (bundle.path / "verify.json").exists()
    Bundle.open(bundle.path)  # is unchanged

    done = 0
    monkeypatch.setattr(WorkItems, "run", stop_after(10_000))
    lines: list[str] = []
    resumed = verify(bundle, settings=TWO_BATCHES, device="cpu", say=lines.append)
    assert any(line.startswith("reused 25 batches") for line in lines)
    assert [without_latency(a) for a in resumed.artifacts] == [without_latency(a) for a in complete.artifacts]
    assert resumed.reference == complete.reference
    assert not list(bundle.path.glob("checkpoints/verify-*"))


@pytest.mark.parametrize(("change", "reused"), [({"iterations": 4}, False), ({"max_drop": 0.6}, True)])
def test_only_equal_budgets_reuse_results(attacked: Bundle, change: dict[str, Any], reused: bool) -> None:
    lines: list[str] = []
    verify(attacked, settings=replace(FAST, **change), device="cpu", say=lines.append)
    assert any(line.startswith("reused") for line in lines) == reused


def test_two_processes_find_what_one_finds(trained: Path, tmp_path: Path) -> None:
    single, shared = (copytree(trained, tmp_path / name) for name in ("single", "shared"))
    options = ["verify", "--device", "cpu", "--samples", "48", "--iterations", "3", "--json", "--model"]
    one = run_cli(*options, single)
    first, second = run_ranks(2, command_line, *options, str(shared))
    assert one.returncode == 3, one.stderr  # undecided
    assert (first.returncode, second.returncode) == (3, 0), first.stderr + second.stderr
    assert results(single) == results(shared)
    assert json.loads(first.stdout)["samples"] == 48
    assert second.stdout == ""


def test_results_of_servers_are_not_reused(attacked: Bundle) -> None:
    """A faulty server after a correct one, in one verification."""
    correct = OnnxRuntimeClassifier(attacked.file("model.onnx"), kernel=False)

    def faulty(pixels: Pixels) -> Logits:
        return correct(pixels)[:, ::-1].copy()

    spec = {"input_shape": correct.input_shape, "classes": correct.classes}
    with serve(correct, **spec) as one, serve(faulty, **spec) as other:  # type: ignore[arg-type]
        urls = [f"{server}/v2/models/net" for server in (one, other)]
        report = verify(attacked, urls, settings=FAST, device="cpu")
    first, second = report.artifacts
    assert first.worst_case.max_abs < 1e-4
    assert second.worst_case.max_abs > 0.1


def test_results_depend_on_the_attacked_images(bundle: Bundle, tmp_path: Path) -> None:
    """Which images are attacked depends on the results for the artifacts before."""
    file = bundle.file("model.onnx")
    run = ArtifactRun("model.onnx", OnnxRuntimeClassifier(file, kernel=False), FAST, file, "digest")
    images, labels = load_dataset("digits", "test", 8).batch(range(40))
    reference = PyTorchClassifier(load(bundle))
    setup = Setup(
        reference, images, labels, Threat("Linf", 0.5), FAST, WorkItems(tmp_path), lambda line: None
    )
    for rows in (np.arange(20), np.arange(10, 30)):
        for name in ("bpda", "square"):
            broken = np.concatenate([part["rows"] for part in attack_images(setup, run, name, rows)])
            assert len(broken) > 0
            assert set(broken) <= set(rows)
            assert broken.max() > rows[:10].max()  # the last images were attacked too
