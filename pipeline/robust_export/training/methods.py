"""Training methods: how each attacks a batch and which loss it minimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Generator, Tensor, nn

from robust_export.attacks.pgd import cross_entropy, gaussian_start, pgd, single_step
from robust_export.recipe.schema import BETA, Recipe
from robust_export.training import losses

Objective = Callable[[nn.Module], Tensor]
"""The loss of a batch, a scalar, as a function of the model (in train mode)."""


class Method(Protocol):
    """Attacks a batch with the model in eval mode and returns the objective to minimise in train mode."""

    def __call__(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Objective:
        """Return the objective of a batch.

        Args:
            model: in eval mode.
            pixels: [N, C, H, W] in [0, 1].
            labels: [N], or probabilities [N, K].
            generator: on the CPU; source of the attack's randomness.
        """


class SingleView:
    """Cross-entropy on one version of each image, here the image itself: method "standard"."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Objective:
        attacked = self.attack(model, pixels, labels, generator)
        smoothing = self.recipe.train.label_smoothing
        return lambda network: losses.cross_entropy(network(attacked), labels, smoothing)

    def attack(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        return pixels


class PgdAt(SingleView):
    """PGD adversarial training (Madry et al., arXiv 1706.06083)."""

    def attack(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        settings, threat = self.recipe.attack, self.recipe.threat
        return pgd(
            model, pixels, labels, threat, steps=settings.steps, step_size=settings.step_size * threat.eps,
            generator=generator if settings.random_start else None,
        )  # fmt: skip


class Fast(SingleView):
    """Single-step training: N-FGSM (arXiv 2202.01181) or RS-FGSM (arXiv 2001.03994)."""

    def attack(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        return single_step(
            model, pixels, labels, self.recipe.threat, self.recipe.attack.single_step, generator
        )


class PairedViews:
    """TRADES and MART: a loss of the logits of the images and of their adversarial examples."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.trades = recipe.train.method == "trades"
        beta = recipe.train.beta
        self.beta = BETA[recipe.train.method] if beta is None else beta

    def __call__(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Objective:
        attacked = self.attack(model, pixels, labels, generator)
        loss = losses.trades if self.trades else losses.mart
        smoothing = self.recipe.train.label_smoothing
        return lambda network: loss(network(pixels), network(attacked), labels, self.beta, smoothing)

    def attack(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """Maximise the KL divergence from the logits of the images (TRADES), or the cross-entropy (MART).

        Both start at x + 0.001 * N(0, 1), as in the code of their authors: at the image itself the divergence
        has no gradient.
        """
        settings, threat = self.recipe.attack, self.recipe.threat
        clean = model(pixels).detach() if self.trades else None
        return pgd(
            model, pixels, labels, threat, steps=settings.steps, step_size=settings.step_size * threat.eps,
            start=gaussian_start(pixels, threat, generator),
            loss=cross_entropy if clean is None else lambda logits, _: losses.kl_divergence(clean, logits),
        )  # fmt: skip


def find_method(recipe: Recipe) -> Method:
    """Return the method of a recipe; PGD with 0 steps is standard training."""
    if not recipe.adversarial:
        return SingleView(recipe)
    methods: dict[str, type[SingleView] | type[PairedViews]] = {
        "pgd-at": PgdAt, "fast": Fast, "trades": PairedViews, "mart": PairedViews,
    }  # fmt: skip
    return methods[recipe.train.method](recipe)
