"""Gradient-masking checks: signs that an attack failed although adversarial examples exist.

See Athalye et al., arXiv 1802.00420, section 3. A failed check warns that robust accuracy may be too high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from robust_export.verification.results import SanityCheck

MAX_FRACTION = 0.01  # of the images, which Square alone may break, or which may resist a ball that holds all


def check_reference(
    accuracy: Mapping[str, float], one_step: float, many_steps: float, unbounded: float, flags: Sequence[str]
) -> list[SanityCheck]:
    """Return the checks of the reference model.

    Args:
        accuracy: robust accuracy after each attack of AutoAttack, cumulative.
        one_step, many_steps: robust accuracy under one step of size eps, and under PGD.
        unbounded: robust accuracy under PGD in a ball that holds every image.
        flags: AutoAttack's own warnings.
    """
    return [
        _check_black_box("AutoAttack", accuracy),
        _check(
            "one step is no better than many", one_step >= many_steps - 1e-9,
            f"accuracy {one_step:.1%} under one step of size eps, {many_steps:.1%} under PGD",
        ),
        _check(
            "accuracy falls to zero as eps grows", unbounded <= MAX_FRACTION,
            f"accuracy {unbounded:.1%} under PGD in a ball that holds every image",
        ),
        _check("AutoAttack warns of nothing", not flags, "; ".join(flags) or "no flag was raised"),
    ]  # fmt: skip


def check_artifact(accuracy: Mapping[str, float]) -> SanityCheck:
    """Check that Square breaks no more images of an artifact than transfer and BPDA did.

    Args:
        accuracy: robust accuracy after each attack, cumulative.
    """
    return _check_black_box("transfer and BPDA", accuracy)


def _check_black_box(others: str, accuracy: Mapping[str, float]) -> SanityCheck:
    name = "the black box is no better than the white box"
    before = [value for attack, value in accuracy.items() if attack != "square"]
    if "square" not in accuracy or not before:
        return SanityCheck(name, "ok", "not compared: Square or the gradient attacks did not run")
    broken = min(before) - accuracy["square"]
    return _check(
        name, broken <= MAX_FRACTION, f"Square broke {broken:.1%} of all images, which {others} did not break"
    )


def _check(name: str, holds: bool, evidence: str) -> SanityCheck:
    return SanityCheck(name, "ok" if holds else "warn", evidence)
