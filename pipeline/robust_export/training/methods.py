"""What a training step does: how each method attacks a batch, and what it then minimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Generator, Tensor, nn

from robust_export.attacks.pgd import cross_entropy, nearby, pgd, single_step
from robust_export.recipe.schema import BETA, Recipe
from robust_export.training import losses

Objective = Callable[[nn.Module], Tensor]
"""The loss of a batch, a scalar, as a function of the network (in train mode)."""


class Method(Protocol):
    """Attacks a batch with the network in eval mode, and returns what is to be minimised in train mode."""

    def __call__(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Objective:
        """Return the objective of a batch.

        Args:
            model: in eval mode.
            pixels: [N, C, H, W] in [0, 1].
            labels: [N], or probabilities [N, K].
            generator: on the CPU; the attack's randomness comes from it.
        """


class OneImage:
    """Cross-entropy on one version of each image: itself ("standard"), or what an attack made of it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Objective:
        seen = self.attack(model, pixels, labels, generator)
        smoothing = self.recipe.train.label_smoothing
        return lambda network: losses.cross_entropy(network(seen), labels, smoothing)

    def attack(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        return pixels


class PgdAt(OneImage):
    """PGD adversarial training (Madry et al., arXiv 1706.06083)."""

    def attack(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        settings, threat = self.recipe.attack, self.recipe.threat
        return pgd(
            model, pixels, labels, threat, steps=settings.steps, step_size=settings.step_size * threat.eps,
            generator=generator if settings.random_start else None,
        )  # fmt: skip


class Fast(OneImage):
    """Single-step training: N-FGSM (arXiv 2202.01181) or RS-FGSM (arXiv 2001.03994)."""

    def attack(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        return single_step(
            model, pixels, labels, self.recipe.threat, self.recipe.attack.single_step, generator
        )


class TwoImages:
    """TRADES and MART: a loss of the logits of the images and of what an attack made of them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.trades = recipe.train.method == "trades"
        given = recipe.train.beta
        self.beta = BETA[recipe.train.method] if given is None else given

    def __call__(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Objective:
        attacked = self.attack(model, pixels, labels, generator)
        loss = losses.trades if self.trades else losses.mart
        smoothing = self.recipe.train.label_smoothing
        return lambda net: loss(net(pixels), net(attacked), labels, self.beta, smoothing)

    def attack(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """Raise the divergence from the images' own logits (TRADES), or the cross-entropy (MART).

        Both start beside the image, x + 0.001 * N(0, 1), as their authors' code does: at the image itself the
        divergence has no gradient.
        """
        settings, threat = self.recipe.attack, self.recipe.threat
        clean = model(pixels).detach() if self.trades else None
        return pgd(
            model, pixels, labels, threat, steps=settings.steps, step_size=settings.step_size * threat.eps,
            start=nearby(pixels, threat, generator),
            loss=cross_entropy if clean is None else lambda logits, _: losses.kl_divergence(clean, logits),
        )  # fmt: skip


def find_method(recipe: Recipe) -> Method:
    """Return the method of a recipe; a PGD of no steps is standard training."""
    if not recipe.adversarial:
        return OneImage(recipe)
    methods: dict[str, type[OneImage] | type[TwoImages]] = {
        "pgd-at": PgdAt, "fast": Fast, "trades": TwoImages, "mart": TwoImages,
    }  # fmt: skip
    return methods[recipe.train.method](recipe)
