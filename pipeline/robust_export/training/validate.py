"""Accuracy on the val split, with and without attacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from robust_export.attacks.pgd import pgd, single_step
from robust_export.data.datasets import Images, batch_indices, load_batches
from robust_export.recipe.schema import Recipe
from robust_export.training.health import RobustAccuracies
from robust_export.training.precision import autocast
from robust_export.training.step import TrainStep

EVAL_BATCH = 256  # val images


class Validator:
    """Measures accuracies of the models that a `TrainStep` owns; several processes share each batch."""

    def __init__(self, recipe: Recipe, images: Images, step: TrainStep) -> None:
        self.recipe, self.images, self.step = recipe, images, step
        self.processes = step.processes

    def accuracy(
        self, model: nn.Module, before_batch: Callable[[], None] = lambda: None
    ) -> tuple[float, float]:
        """Return (clean, robust) accuracy of the model on all val images, robust under PGD.

        Args:
            model: set to eval mode.
            before_batch: called before each batch; may raise to interrupt the validation.
        """
        model.eval()
        generator = self.processes.sharded_generator(seed=0)
        count = len(self.images)
        batches = batch_indices(count, EVAL_BATCH, None)
        shards = [batch[generator.for_batch(len(batch)).shard] for batch in batches]
        clean = robust = 0.0
        for indices, batch in zip(
            batches, load_batches(self.images, shards, self.recipe.data.workers), strict=True
        ):
            before_batch()
            pixels, labels = self.step.to_device(batch)
            adversarial = self._pgd(model, pixels, labels, generator.for_batch(len(indices)))
            counted = generator.weight > 0
            clean += counted * self._correct(model, pixels, labels)
            robust += counted * self._correct(model, adversarial, labels)
        clean, robust = self.processes.sum_over_ranks(clean, robust)
        return clean / count, robust / count

    def robust_accuracies(self) -> RobustAccuracies:
        """Return accuracies of the model under a single step and under PGD, on the first val images."""
        count, model = min(EVAL_BATCH, len(self.images)), self.step.model
        generator = self.processes.sharded_generator(seed=0).for_batch(count)
        pixels, labels = self.step.to_device(self.images.batch(range(count)[generator.shard]))
        multi = self._pgd(model, pixels, labels, generator)
        with self.step.attacked(model) as network:
            kind = self.recipe.attack.single_step
            single = single_step(network, pixels, labels, self.recipe.threat, kind, generator)
        counted = generator.weight > 0
        correct = [counted * self._correct(model, images, labels) for images in (single, multi)]
        return RobustAccuracies(*(total / count for total in self.processes.sum_over_ranks(*correct)))

    def _pgd(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        attack, threat = self.recipe.attack, self.recipe.threat
        with self.step.attacked(model) as network:
            return pgd(
                network, pixels, labels, threat, steps=attack.val_steps,
                step_size=attack.step_size * threat.eps,
                generator=generator if attack.random_start else None,
            )  # fmt: skip

    def _correct(self, model: nn.Module, pixels: Tensor, labels: Tensor) -> int:
        """Return the number of correctly classified images."""
        with torch.no_grad(), autocast(self.recipe.train.amp, self.step.device):
            return int((model(pixels).argmax(1) == labels).sum())
