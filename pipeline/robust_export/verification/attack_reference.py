"""Attacks on the reference model: AutoAttack, and PGD at several radii."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robust_export.attacks.autoattack import AttackResult, autoattack
from robust_export.recipe.schema import Threat
from robust_export.verification.examples import Evaluation, Examples, correctly_classified
from robust_export.verification.setup import Setup

STEPS = 20  # of PGD at most, for an example of every image, also of those that AutoAttack did not break
CURVE_STEPS = 10  # of PGD at the other radii
RADII = (0.25, 0.5, 0.75, 1.5, 2.0, 3.0, 4.0)  # of the curve, in units of the threat's eps
UNBOUNDED = {"Linf": 1.0, "L2": 1e3}  # a radius whose ball holds every image


@dataclass(frozen=True)
class ReferenceAttacks:
    """Results of the attacks on the reference model.

    Attributes:
        one_step, many_steps, unbounded: robust accuracy under one step of size eps, under PGD, and under PGD
            in a ball that holds every image.
    """

    autoattack: AttackResult
    one_step: float
    many_steps: float
    unbounded: float


def attack_reference(setup: Setup, examples: Examples, evaluation: Evaluation) -> ReferenceAttacks:
    """Run AutoAttack, and PGD at several radii; add their results to the examples.

    Args:
        evaluation: of the reference model on `examples`.
    """
    reference, threat = setup.reference, setup.threat
    result = autoattack(
        reference.module, setup.images.to(reference.device), setup.labels.to(reference.device), threat,
        setup.settings, lambda name, n: setup.say(f"{name}: attacking {n} images"), setup.work_items,
    )  # fmt: skip
    broken = np.array([name not in ("", "clean") for name in result.broken_by])
    examples.add("autoattack", np.flatnonzero(broken), result.adversarial.cpu().numpy()[broken])
    rows = np.arange(len(examples.labels))
    examples.add("pgd", rows, setup.pgd("threat", threat, STEPS))
    other_radii = [eps for eps in curve_radii(threat) if eps not in (0, threat.eps)]
    setup.say(f"pgd: attacking {len(rows)} images at {len(other_radii)} other radii")
    for eps in other_radii:
        examples.add(f"pgd.{eps:g}", rows, setup.pgd(f"{eps:g}", Threat(threat.norm, eps), CURVE_STEPS))
    one_step = setup.pgd("one-step", threat, 1, random_start=False)
    unbounded = setup.pgd("everything", Threat(threat.norm, UNBOUNDED[threat.norm]), CURVE_STEPS)
    logits = (reference(one_step), evaluation.update().logits["pgd"], reference(unbounded))
    return ReferenceAttacks(
        result, *(float(correctly_classified(item, examples.labels).mean()) for item in logits)
    )


def curve_radii(threat: Threat) -> list[float]:
    """Return the radii of the accuracy curve in ascending order, from 0 up to UNBOUNDED at most."""
    radii = (min(r * threat.eps, UNBOUNDED[threat.norm]) for r in RADII)
    return sorted({0.0, threat.eps, *radii})
