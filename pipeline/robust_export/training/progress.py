"""What a training run is at any step: its progress, and the random generators' states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to. Accuracies are of the averaged weights on the val split."""

    epoch: int  # from 1
    loss: float  # mean over the training images, as the method defines it
    clean_accuracy: float
    robust_accuracy: float  # under PGD with attack.val_steps steps
    seconds: float


@dataclass
class Position:
    """How far an epoch is: its steps that are done, and what they came to.

    Attributes:
        total: the sum over images of the losses so far, float64.
        seen: how many images that were.
        rng: the generators' states after those steps; empty at the start of an epoch.
    """

    step: int = 0
    total: float = 0.0
    seen: int = 0
    rng: dict[str, Tensor] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return what goes into the checkpoint's JSON; `rng` goes with the tensors."""
        return {"step": self.step, "total": self.total, "seen": self.seen}


class Sums:
    """What an epoch's losses come to, kept on the device, so that no step waits for it.

    Attributes:
        recent: the losses that nobody has looked at yet.
    """

    def __init__(self, start: Position, device: torch.device) -> None:
        self.total = torch.tensor(start.total, device=device, dtype=torch.float64)
        self.seen = start.seen
        self.recent: list[Tensor] = []

    def add(self, loss: Tensor, images: int) -> None:
        """Take a step's mean loss over so many images."""
        self.total += loss * images
        self.seen += images
        self.recent.append(loss)

    def mean(self) -> float:
        return self.total.item() / self.seen

    def position(self, step: int, rng: dict[str, Tensor]) -> Position:
        """Return the position after so many steps of the epoch."""
        return Position(step, self.total.item(), self.seen, rng)


def rng_state(generator: Generator, device: torch.device) -> dict[str, Tensor]:
    """Return the states, uint8 [B], of the epoch's generator and of torch's global ones."""
    states = {"epoch": generator.get_state(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng(states: dict[str, Tensor], generator: Generator, device: torch.device) -> None:
    """Put back what `rng_state` returned."""
    generator.set_state(states["epoch"])
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:  # a run may go on on another device
        torch.cuda.set_rng_state(states["cuda"], device)
