"""Setup of a verification: reference model, test images, threat, budgets, work items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Generator, Tensor

from robust_export.attacks.pgd import pgd
from robust_export.recipe.schema import Threat, Verify
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.utils.work_items import Arrays, WorkItems

Say = Callable[[str], None]


class Setup:
    """What all attacks of a verification share.

    Args:
        images: [N, C, H, W], on the CPU; labels: [N].
        work_items: runs batches of the attacks, and keeps their results until the verification is complete.
        say: receives lines on the progress.
    """

    def __init__(
        self, reference: PyTorchClassifier, images: Tensor, labels: Tensor, threat: Threat, settings: Verify,
        work_items: WorkItems, say: Say,
    ) -> None:  # fmt: skip
        self.reference = reference
        self.images, self.labels = images, labels
        self.threat, self.settings = threat, settings
        self.work_items, self.say = work_items, say
        self._noise_logits: dict[int, Logits] = {}

    def pgd(self, stage: str, threat: Threat, steps: int, *, random_start: bool = True) -> Pixels:
        """Return PGD's examples of all images on the reference model, [N, C, H, W].

        Args:
            stage: name of the work item.
            steps: limited by `settings.iterations`.
        """
        steps = min(steps, self.settings.iterations)
        images, labels = (t.split(self.settings.batch_size) for t in (self.images, self.labels))
        device = self.reference.device

        def attack(i: int) -> Arrays:
            generator = Generator().manual_seed(self.settings.seed + i)
            examples = pgd(
                self.reference.module, images[i].to(device), labels[i].to(device), threat, steps=steps,
                step_size=threat.eps if steps == 1 else 2.5 * threat.eps / steps,
                generator=generator if random_start else None,
            )  # fmt: skip
            return {"pixels": examples.cpu().numpy()}

        results = self.work_items.run(f"pgd.{stage}", attack, len(images))
        return np.concatenate([result["pixels"] for result in results])

    def noise(self, batch: int) -> tuple[Pixels, Logits]:
        """Return a batch of uniform noise and the reference model's logits, which are computed once."""
        shape = (self.settings.batch_size, *self.images.shape[1:])
        pixels = np.random.default_rng(self.settings.seed + batch).random(shape, np.float32)
        if batch not in self._noise_logits:
            self._noise_logits[batch] = self.reference(pixels)
        return pixels, self._noise_logits[batch]
