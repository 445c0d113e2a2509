"""Detect non-finite losses and weights, dead loader workers and catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_export.errors import TrainingError

MAX_LOSS_OF_ROBUSTNESS = 0.5  # fraction of the best multi-step accuracy
MIN_DIFFERENCE = 0.15  # of single-step and multi-step accuracy


@dataclass(frozen=True)
class RobustAccuracies:
    """Robust accuracies, in [0, 1], of the model (not of its average) on the same val images."""

    single_step: float  # under the attack of training method "fast"
    multi_step: float  # under PGD with attack.val_steps steps


def catastrophic_overfitting(epochs: Sequence[RobustAccuracies]) -> bool:
    """Return whether the last epoch shows catastrophic overfitting.

    It does if multi-step accuracy is below half of its best and single-step accuracy is at least 0.15 higher:
    the model learnt to resist the single step only (Wong et al., arXiv 2001.03994; Andriushchenko &
    Flammarion, arXiv 2007.02617). Two low accuracies, as at the start of training, are no overfitting.
    """
    if len(epochs) < 2:
        return False
    best, last = max(e.multi_step for e in epochs[:-1]), epochs[-1]
    lost = last.multi_step < MAX_LOSS_OF_ROBUSTNESS * best
    return lost and last.single_step - last.multi_step >= MIN_DIFFERENCE


def first_non_finite(losses: Sequence[Tensor]) -> int | None:
    """Return the index of the first loss that is nan or inf, None if all are finite."""
    if not losses:
        return None
    bad = torch.stack([loss.detach().float() for loss in losses]).isfinite().logical_not().nonzero()
    return int(bad[0]) if len(bad) else None


def has_finite_parameters(module: nn.Module) -> bool:
    """Return whether all parameters are finite."""
    finite = [p.isfinite().all() for p in module.parameters()]
    return not finite or bool(torch.stack(finite).all())


def explain(error: RuntimeError) -> RuntimeError | TrainingError:
    """Return a TrainingError for PyTorch's error about a dead loader worker, any other error unchanged."""
    if "DataLoader worker" not in str(error):
        return error
    return TrainingError(
        f"a process that decodes images died ({str(error).splitlines()[0]}); perhaps memory ran out. The "
        "last checkpoint is intact: reduce data.workers or free memory, and continue with the same command "
        "and --resume."
    )
