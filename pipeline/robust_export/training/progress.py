"""Progress of a training run: results of epochs, position within an epoch, states of random generators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Epoch:
    """Results of an epoch. Accuracies are those of the averaged weights on the val split."""

    epoch: int  # from 1
    loss: float  # of the training method, mean over the training images
    clean_accuracy: float
    robust_accuracy: float  # under PGD with attack.val_steps steps
    seconds: float


@dataclass
class Position:
    """Position within an epoch.

    Attributes:
        step: number of completed steps.
        total: sum of their losses over images, float64.
        seen: number of their images.
        rng: states of the random generators after them; empty at the start of an epoch.
    """

    step: int = 0
    total: float = 0.0
    seen: int = 0
    rng: dict[str, Tensor] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all but `rng`, which is stored with the tensors."""
        return {"step": self.step, "total": self.total, "seen": self.seen}


class LossSum:
    """Sum of the losses of an epoch, kept on the device so that no step waits for it.

    Attributes:
        unchecked: losses that were not yet checked to be finite.
    """

    def __init__(self, start: Position, device: torch.device) -> None:
        self.total = torch.tensor(start.total, device=device, dtype=torch.float64)
        self.seen = start.seen
        self.unchecked: list[Tensor] = []

    def add(self, loss: Tensor, images: int) -> None:
        """Add the mean loss of a step with so many images."""
        self.total += loss * images
        self.seen += images
        self.unchecked.append(loss)

    def mean(self) -> float:
        """Return the mean loss per image."""
        return self.total.item() / self.seen

    def position(self, step: int, rng: dict[str, Tensor]) -> Position:
        """Return the position after so many steps of the epoch."""
        return Position(step, self.total.item(), self.seen, rng)


def rng_state(generator: Generator, device: torch.device) -> dict[str, Tensor]:
    """Return the states, uint8 [B], of the epoch's generator and of torch's global generators."""
    states = {"epoch": generator.get_state(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng(states: dict[str, Tensor], generator: Generator, device: torch.device) -> None:
    """Restore the states that `rng_state` returned."""
    generator.set_state(states["epoch"])
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:  # a run may be resumed on another type of device
        torch.cuda.set_rng_state(states["cuda"], device)
