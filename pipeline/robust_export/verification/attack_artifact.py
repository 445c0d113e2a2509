"""Attacks on an artifact: transfer, BPDA, Square, and the worst-case search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robust_export.attacks.autoattack import check_budget
from robust_export.attacks.bpda import bpda
from robust_export.attacks.square import square
from robust_export.utils.work_items import Arrays
from robust_export.verification.artifact_runs import ArtifactRun
from robust_export.verification.examples import Evaluation, Examples, Rows, correctly_classified
from robust_export.verification.results import InputDifferences
from robust_export.verification.setup import Setup
from robust_export.verification.worst_case import DifferenceRecorder, WorstCaseSearch, join


@dataclass(frozen=True)
class ArtifactAttacks:
    """Results of the attacks on an artifact.

    Attributes:
        accuracy: robust accuracy after each attack, cumulative.
        searched: differences on all inputs of BPDA and of the worst-case search; random: on as many random
            ones.
        notes: attacks that did not run, and why.
    """

    run: ArtifactRun
    evaluation: Evaluation
    accuracy: dict[str, float]
    searched: InputDifferences
    random: InputDifferences
    notes: tuple[str, ...]


def attack_artifact(setup: Setup, examples: Examples, run: ArtifactRun) -> ArtifactAttacks:
    """Run all attacks on an artifact, each on the images still robust; add their results to the examples."""
    evaluation = Evaluation(run.classifier, examples)
    accuracy = {"transfer": float(evaluation.robust.mean())}
    recorded: list[Arrays] = []
    notes = []
    for name in ("bpda", "square"):
        if why := _why_impossible(name, setup):
            notes.append(why)
            continue
        rows = np.flatnonzero(evaluation.robust)
        setup.say(f"{name}: attacking {len(rows)} images of {run.title}")
        results = attack_images(setup, run, name, rows)
        recorded += [result for result in results if "margin" in result]
        _add(examples, f"{name} on {run.title}", results)
        accuracy[name] = float(evaluation.update().robust.mean())
    setup.say(f"searching for the worst case of {run.title}")
    results = _search_worst_case(setup, examples, run)
    _add(examples, f"worst case of {run.title}", results)
    accuracy["worst_case"] = float(evaluation.update().robust.mean())
    searched = join([*recorded, *results])
    random = _compare_on_noise(setup, run, len(searched.max_abs))
    return ArtifactAttacks(run, evaluation, accuracy, searched, random, tuple(notes))


def _add(examples: Examples, name: str, results: Sequence[Arrays]) -> None:
    """Add the examples of an attack's work items."""
    if results:
        rows, pixels = (np.concatenate([result[key] for result in results]) for key in ("rows", "pixels"))
        examples.add(name, rows, pixels)


def _why_impossible(name: str, setup: Setup) -> str:
    """Return why an attack cannot run on such images, "" if it can."""
    size = setup.images.shape[-1]
    if name == "square" and setup.threat.norm == "L2" and size < 5:
        return f"square not run: under L2 it needs images of 5 pixels or more, these have {size}"
    return ""


def attack_images(setup: Setup, run: ArtifactRun, name: str, rows: Rows) -> list[Arrays]:
    """Run BPDA or Square on the images `rows`; return the misclassified examples, by batch."""
    size = setup.settings.batch_size
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    device = setup.reference.device

    def attack(i: int) -> Arrays:
        images, labels = setup.images[batches[i]].to(device), setup.labels[batches[i]].to(device)
        recorder = DifferenceRecorder()
        if name == "bpda":
            adversarial = bpda(
                run.classifier, setup.reference.module, images, labels, setup.threat, run.settings,
                recorder.observe,
            )  # fmt: skip
        else:
            adversarial = square(run.classifier, images, labels, setup.threat, run.settings)
        check_budget(adversarial, images, setup.threat)
        pixels = adversarial.cpu().numpy()
        broken = ~correctly_classified(run.classifier(pixels), setup.labels[batches[i]].numpy())
        recorded = recorder.arrays() if name == "bpda" else {}
        return {"rows": batches[i][broken], "pixels": pixels[broken], **recorded}

    return setup.work_items.run(name, attack, len(batches), depends_on=run.depends_on(rows.tobytes()))


def _search_worst_case(setup: Setup, examples: Examples, run: ArtifactRun) -> list[Arrays]:
    """Search around every image, starting from the examples of AutoAttack and PGD."""
    autoattack, pgd = examples.get("autoattack"), examples.get("pgd").pixels
    broken = examples.clean.copy()
    broken[autoattack.rows] = autoattack.pixels
    size = setup.settings.batch_size
    starts = range(0, len(examples.clean), size)

    def search(i: int) -> Arrays:
        part = slice(starts[i], starts[i] + size)
        return WorstCaseSearch(
            setup.reference, run.classifier, examples.clean[part], examples.labels[part],
            [broken[part], pgd[part]], setup.threat, ascent=run.settings.ascent,
            seed=setup.settings.seed + i,
        ).run()  # fmt: skip

    results = setup.work_items.run("worst-case", search, len(starts), depends_on=run.depends_on())
    return [{**result, "rows": result["rows"] + starts[i]} for i, result in enumerate(results)]


def _compare_on_noise(setup: Setup, run: ArtifactRun, count: int) -> InputDifferences:
    """Compare artifact and reference model on `count` random inputs."""
    size = setup.settings.batch_size

    def compare(i: int) -> Arrays:
        pixels, logits = setup.noise(i)
        rest = min(size, count - i * size)
        recorder = DifferenceRecorder()
        recorder.observe(pixels[:rest], logits[:rest], run.classifier(pixels[:rest]))
        return recorder.arrays()

    depends_on = run.depends_on(str(count).encode())
    return join(setup.work_items.run("random", compare, -(-count // size), depends_on=depends_on))
