"""Attacks the source, then each artifact, and collects every example that was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Generator, Tensor

from robust_export.attacks.artifact import bpda, square
from robust_export.attacks.autoattack import AttackResult, autoattack, check_budget
from robust_export.attacks.pgd import pgd
from robust_export.recipe.schema import Threat, Verify
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.utils.work_items import Arrays, WorkItems
from robust_export.verification.artifacts import Subject
from robust_export.verification.examples import Examples, Rows, Score, right
from robust_export.verification.results import Points
from robust_export.verification.worst_case import Search, Watch, points

STEPS = 20  # of PGD at most, for an example of every image, those too that AutoAttack could not break
CURVE_STEPS = 10  # of PGD at the other radii
RADII = (0.25, 0.5, 0.75, 1.5, 2.0, 3.0, 4.0)  # of the curve, in units of the threat's eps
WHOLE = {"Linf": 1.0, "L2": 1e3}  # a radius that holds every image

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """What all of a verification shares: the source, the images, the threat, the budgets."""

    source: PyTorchClassifier
    pixels: Tensor  # [N, C, H, W], on the CPU
    labels: Tensor  # [N]
    threat: Threat
    settings: Verify
    units: WorkItems
    say: Say
    on_noise: dict[int, Logits] = field(default_factory=dict)  # the source's, by batch, for all artifacts

    def pgd(self, stage: str, threat: Threat, steps: int = STEPS, *, random_start: bool = True) -> Pixels:
        """Return PGD's examples of all images, [N, C, H, W], at any radius; in `iterations` steps at most."""
        steps = min(steps, self.settings.iterations)
        images, labels = (t.split(self.settings.batch_size) for t in (self.pixels, self.labels))
        device = self.source.device

        def attack(i: int) -> Arrays:
            generator = Generator().manual_seed(self.settings.seed + i)
            found = pgd(
                self.source.module, images[i].to(device), labels[i].to(device), threat, steps=steps,
                step_size=threat.eps if steps == 1 else 2.5 * threat.eps / steps,
                generator=generator if random_start else None,
            )  # fmt: skip
            return {"pixels": found.cpu().numpy()}

        return np.concatenate([r["pixels"] for r in self.units.run(f"pgd.{stage}", attack, len(images))])


@dataclass(frozen=True)
class ReferenceEvidence:
    """What attacking the source showed.

    Attributes:
        one_step, many_steps, everything: robust accuracy under one step of size eps, under PGD, and under PGD
            where the ball holds every image.
    """

    attacked: AttackResult
    one_step: float
    many_steps: float
    everything: float


@dataclass(frozen=True)
class ArtifactEvidence:
    """What attacking an artifact showed.

    Attributes:
        accuracy: robust accuracy after each attack, cumulative.
        seen: every input on which it was compared with the source; `random`: as many random ones.
    """

    subject: Subject
    score: Score
    accuracy: dict[str, float]
    seen: Points
    random: Points


def attack_source(trial: Trial, examples: Examples, scored: Score) -> ReferenceEvidence:
    """Run AutoAttack, and PGD at several radii; add what they found to the examples.

    Args:
        scored: the source on these examples.
    """
    source, threat = trial.source, trial.threat
    attacked = autoattack(
        source.module, trial.pixels.to(source.device), trial.labels.to(source.device), threat, trial.settings,
        lambda name, n: trial.say(f"{name}: attacking {n} images"), trial.units,
    )  # fmt: skip
    broken = np.array([name not in ("", "clean") for name in attacked.broken_by])
    examples.add("autoattack", np.flatnonzero(broken), attacked.adversarial.cpu().numpy()[broken])
    everyone = np.arange(len(examples.labels))
    examples.add("pgd", everyone, trial.pgd("threat", threat))
    others = [eps for eps in radii(threat) if eps not in (0, threat.eps)]
    trial.say(f"pgd: attacking {len(everyone)} images at {len(others)} other radii")
    for eps in others:
        found = trial.pgd(f"{eps:g}", Threat(threat.norm, eps), CURVE_STEPS)
        examples.add(f"pgd.{eps:g}", everyone, found)
    one_step = trial.pgd("one-step", threat, 1, random_start=False)
    everything = trial.pgd("everything", Threat(threat.norm, WHOLE[threat.norm]), CURVE_STEPS)
    answers = (source(one_step), scored.update().logits["pgd"], source(everything))
    return ReferenceEvidence(attacked, *(float(right(logits, examples.labels).mean()) for logits in answers))


def radii(threat: Threat) -> list[float]:
    """Return the radii of the curve, from 0 on; none is larger than what holds every image."""
    return sorted({0.0, threat.eps, *(min(r * threat.eps, WHOLE[threat.norm]) for r in RADII)})


def attack_artifact(trial: Trial, examples: Examples, subject: Subject) -> ArtifactEvidence:
    """Attack an artifact: by transfer, by BPDA and Square on it alone, and in search of the worst case."""
    score = Score(subject.classifier, examples)
    accuracy = {"transfer": float(score.robust.mean())}
    seen = []
    for name in ("bpda", "square"):
        if why := _impossible(name, trial):
            subject.notes.append(why)
            continue
        rows = np.flatnonzero(score.robust)
        trial.say(f"{name}: attacking {len(rows)} images of {subject.title}")
        results = attack_images(trial, subject, name, rows)
        seen += [result for result in results if "margin" in result]
        _add(examples, f"{name} on {subject.title}", results)
        accuracy[name] = float(score.update().robust.mean())
    trial.say(f"searching for the worst case of {subject.title}")
    searched = _search(trial, examples, subject)
    _add(examples, f"worst case of {subject.title}", searched)
    accuracy["worst_case"] = float(score.update().robust.mean())
    everywhere = points([*seen, *searched])
    return ArtifactEvidence(
        subject, score, accuracy, everywhere, _random(trial, subject, len(everywhere.gap))
    )


def _add(examples: Examples, name: str, results: Sequence[Arrays]) -> None:
    """Add what the units of an attack found."""
    if results:
        rows, pixels = (np.concatenate([result[key] for result in results]) for key in ("rows", "pixels"))
        examples.add(name, rows, pixels)


def _impossible(name: str, trial: Trial) -> str:
    size = trial.pixels.shape[-1]
    if name == "square" and trial.threat.norm == "L2" and size < 5:
        return f"square not run: under L2 it needs images of 5 pixels or more, these have {size}"
    return ""


def attack_images(trial: Trial, subject: Subject, name: str, rows: Rows) -> list[Arrays]:
    """Run BPDA or Square on the images `rows`; return the examples that the artifact misreads, by batch."""
    size = trial.settings.batch_size
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    device = trial.source.device

    def attack(i: int) -> Arrays:
        images, labels = trial.pixels[batches[i]].to(device), trial.labels[batches[i]].to(device)
        watch = Watch()
        if name == "bpda":
            found = bpda(
                subject.classifier, trial.source.module, images, labels, trial.threat, subject.settings,
                watch.observe,
            )  # fmt: skip
        else:
            found = square(subject.classifier, images, labels, trial.threat, subject.settings)
        check_budget(found, images, trial.threat)
        pixels = found.cpu().numpy()
        fell = ~right(subject.classifier(pixels), trial.labels[batches[i]].numpy())
        saw = watch.arrays() if name == "bpda" else {}
        return {"rows": batches[i][fell], "pixels": pixels[fell], **saw}

    return trial.units.run(name, attack, len(batches), given=subject.given(rows.tobytes()))


def _search(trial: Trial, examples: Examples, subject: Subject) -> list[Arrays]:
    """Search around every image, from what AutoAttack and PGD made of it."""
    found = examples.get("autoattack")
    misleading, descended = examples.clean.copy(), examples.get("pgd").pixels
    misleading[found.rows] = found.pixels
    size = trial.settings.batch_size
    starts = range(0, len(examples.clean), size)

    def search(i: int) -> Arrays:
        part = slice(starts[i], starts[i] + size)
        return Search(
            trial.source, subject.classifier, examples.clean[part], examples.labels[part],
            [misleading[part], descended[part]], trial.threat, ascent=subject.settings.ascent,
            seed=trial.settings.seed + i,
        ).run()  # fmt: skip

    results = trial.units.run("worst-case", search, len(starts), given=subject.given())
    return [{**r, "rows": r["rows"] + starts[i]} for i, r in enumerate(results)]


def _random(trial: Trial, subject: Subject, count: int) -> Points:
    """Compare on as many random inputs as the search looked at."""
    size = trial.settings.batch_size
    plane = tuple(trial.pixels.shape[1:])

    def compare(i: int) -> Arrays:
        noise = np.random.default_rng(trial.settings.seed + i).random((size, *plane), np.float32)
        if i not in trial.on_noise:
            trial.on_noise[i] = trial.source(noise)
        rest = min(size, count - i * size)
        watch = Watch()
        watch.observe(noise[:rest], trial.on_noise[i][:rest], subject.classifier(noise[:rest]))
        return watch.arrays()

    given = subject.given(str(count).encode())
    return points(trial.units.run("random", compare, -(-count // size), given=given))
