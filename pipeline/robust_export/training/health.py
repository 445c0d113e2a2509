"""What tells a run that goes on from one that is lost: numbers, processes, and robustness itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_export.errors import TrainingError

COLLAPSE = 0.5  # of its best, below which multi-step robust accuracy counts as lost
FOOLED = 0.15  # of accuracy, by which the single step must then be easier than many steps


@dataclass(frozen=True)
class Watched:
    """Accuracies in [0, 1] of the network itself, not of its average, on the same val images."""

    single_step: float  # under the attack that training uses
    multi_step: float  # under PGD with attack.val_steps steps


def collapsed(watched: Sequence[Watched]) -> bool:
    """Tell whether the last epoch is one of catastrophic overfitting.

    That is, PGD's accuracy fell below half of its best while the single step is still withstood: the network
    learnt to fool the single step (Wong et al., arXiv 2001.03994; Andriushchenko & Flammarion,
    arXiv 2007.02617). Where both are low, as at the start, nothing was fooled.
    """
    if len(watched) < 2:
        return False
    best, last = max(w.multi_step for w in watched[:-1]), watched[-1]
    return last.multi_step < COLLAPSE * best and last.single_step - last.multi_step >= FOOLED


def first_bad(losses: Sequence[Tensor]) -> int | None:
    """Return the index of the first loss that is no number, None where all are finite."""
    if not losses:
        return None
    bad = torch.stack([loss.detach().float() for loss in losses]).isfinite().logical_not().nonzero()
    return int(bad[0]) if len(bad) else None


def finite(module: nn.Module) -> bool:
    """Tell whether all parameters are finite."""
    found = [p.isfinite().all() for p in module.parameters()]
    return not found or bool(torch.stack(found).all())


def explain(error: RuntimeError) -> RuntimeError | TrainingError:
    """Return what to raise for an error of PyTorch: a dead worker is told in the user's words."""
    if "DataLoader worker" not in str(error):
        return error
    return TrainingError(
        f"a process that decodes images died ({str(error).splitlines()[0]}); perhaps memory ran out. The "
        "last checkpoint is whole: lower data.workers or free memory, and go on with the same command and "
        "--resume."
    )
