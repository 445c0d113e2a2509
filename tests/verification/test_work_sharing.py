"""Interrupted, or shared among processes: the result is the one of a single, whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from robust_export.verification.artifacts import Subject
from robust_export.verification.attack import Trial, attack_images

from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.nn.load import load
from robust_export.recipe.schema import Threat
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.utils import work_items as units
from robust_export.utils.work_items import Arrays, WorkItems
from robust_export.verification.verify import verify
from tests.processes import command_line, run_cli, run_ranks
from tests.runtimes.v2_server import serve
from tests.verification.test_verify import FAST, timeless

SMALL = replace(FAST, samples=64, batch_size=32)
TIMES = ("seconds", "provenance", "command")  # of a run, not of its result


def results(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((path / "verify.json").read_text())
    for item in value["artifacts"]:
        del item["latency"]
    return {key: entry for key, entry in value.items() if key not in TIMES}


def test_an_interrupted_verification_goes_on_where_it_stopped(
    bundle: Bundle, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = verify(trained, settings=SMALL, device="cpu", write=False)
    run, done = units.WorkItems.run, 0

    def stop_after(most: int) -> Callable[..., list[Arrays]]:
        def stopping(
            self: units.WorkItems, stage: str, compute: Callable[[int], Arrays], count: int, **given: Any
        ) -> list[Arrays]:
            def counted(i: int) -> Arrays:
                nonlocal done
                if done == most:
                    raise KeyboardInterrupt
                done += 1
                return compute(i)

            return run(self, stage, counted, count, **given)

        return stopping

    monkeypatch.setattr(units.WorkItems, "run", stop_after(25))
    with pytest.raises(KeyboardInterrupt):
        verify(bundle, settings=SMALL, device="cpu")
    assert len(list(bundle.path.glob("checkpoints/verify-*/*.safetensors"))) == 25
    assert not (bundle.path / "verify.json").exists()
    Bundle.open(bundle.path)  # which is not altered

    done = 0
    monkeypatch.setattr(units.WorkItems, "run", stop_after(10_000))
    said: list[str] = []
    resumed = verify(bundle, settings=SMALL, device="cpu", say=said.append)
    assert any(line.startswith("25 parts") for line in said)
    assert [timeless(a) for a in resumed.artifacts] == [timeless(a) for a in whole.artifacts]
    assert resumed.source == whole.source
    assert not list(bundle.path.glob("checkpoints/verify-*"))


def test_other_budgets_do_not_go_on_with_what_is_there(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units.WorkItems, "finish", lambda self: None)
    verify(bundle, settings=SMALL, device="cpu")
    said: list[str] = []
    verify(bundle, settings=replace(SMALL, iterations=4), device="cpu", say=said.append)
    assert not [line for line in said if "parts" in line]
    verify(
        bundle, settings=replace(SMALL, max_drop=0.6), device="cpu", say=said.append
    )  # a gate is no budget
    assert [line for line in said if "parts" in line]


def test_two_ranks_find_what_one_process_finds(trained: Path, tmp_path: Path) -> None:
    words = ["verify", "--device", "cpu", "--samples", "96", "--iterations", "3", "--json", "--model"]
    single, shared = (copytree(trained, tmp_path / name) for name in ("single", "shared"))
    one = run_cli(*words, single)
    ranks = run_ranks(2, command_line, *words, str(shared))
    assert [ran.returncode for ran in (one, *ranks)] == [3, 3, 3], ranks  # 96 images decide nothing
    assert results(single) == results(shared)
    assert json.loads(ranks[0].stdout)["samples"] == 96
    assert ranks[1].stdout == ""


def test_two_servers_do_not_share_what_is_kept(bundle: Bundle) -> None:
    """A spoiled one after a good one, in one verification that keeps its parts."""
    good = OnnxRuntimeClassifier(bundle.file("model.onnx"), kernel=False)

    def spoiled(pixels: Pixels) -> Logits:
        return good(pixels)[:, ::-1].copy()

    with (
        serve(good, input_shape=good.input_shape, classes=good.classes) as one,
        serve(spoiled, input_shape=good.input_shape, classes=good.classes) as other,
    ):
        urls = [f"{server}/v2/models/net" for server in (one, other)]
        report = verify(bundle, urls, settings=SMALL, device="cpu")
    first, second = report.artifacts
    assert first.worst_case.max_abs < 1e-4
    assert second.worst_case.max_abs > 0.1


def test_what_was_kept_for_other_images_is_not_taken_for_these(bundle: Bundle, tmp_path: Path) -> None:
    """Which images still stand depends on what was found on the artifacts before."""
    classifier = OnnxRuntimeClassifier(bundle.file("model.onnx"), kernel=False)
    subject = Subject("model.onnx", classifier, SMALL, bundle.file("model.onnx"))
    pixels, labels = load_dataset("digits", "test", 8).batch(range(40))
    source = PyTorchClassifier(load(bundle))
    trial = Trial(source, pixels, labels, Threat("Linf", 0.5), SMALL, WorkItems(tmp_path), lambda line: None)
    for rows in (np.arange(20), np.arange(10, 30)):
        for name in ("bpda", "square"):
            found = np.concatenate([part["rows"] for part in attack_images(trial, subject, name, rows)])
            assert len(found) > 0
            assert set(found) <= set(rows)
            assert found.max() > rows[:10].max()  # and the last ones were attacked as well
