"""Square (Andriushchenko et al., arXiv 1912.00049) on an artifact: random search on its logits, no gradient.

The attack is that of the package `pyautoattack`.
"""

from __future__ import annotations

from functools import partial

from pyautoattack.square import SquareAttack
from torch import Tensor

from robust_export.attacks.artifact_logits import finite_logits
from robust_export.attacks.autoattack import isolated_rng
from robust_export.recipe.schema import Threat, Verify
from robust_export.runtimes.classifier import Classifier


def square(artifact: Classifier, pixels: Tensor, labels: Tensor, threat: Threat, settings: Verify) -> Tensor:
    """Run Square on the artifact with `settings.queries` queries per image.

    Returns:
        [N, C, H, W] in the threat's ball: a misclassified example where one was found, else the last attempt.
    """
    attack = SquareAttack(
        partial(finite_logits, artifact), norm=threat.norm, eps=threat.eps, n_queries=settings.queries,
        n_restarts=1, p_init=0.8, resc_schedule=False, seed=settings.seed + 1, device=pixels.device,
    )  # fmt: skip
    with isolated_rng(pixels.device):
        adversarial: Tensor = attack.perturb(pixels, labels).detach()
    return adversarial
