"""A network that learns: one step on a batch, and its accuracy on the val split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robust_export.attacks.pgd import pgd, single_step
from robust_export.data.datasets import Images, batch_indices, load_batches
from robust_export.recipe.schema import Recipe
from robust_export.training.awp import perturbed
from robust_export.training.bn_folding import FoldedCopy, Scaled
from robust_export.training.distributed import Processes, running_statistics
from robust_export.training.health import Watched
from robust_export.training.malloc import keep_freed_memory
from robust_export.training.methods import Objective, find_method
from robust_export.training.model_setup import prepared
from robust_export.training.optim import make_optimizer
from robust_export.utils.sharded_rng import ShardedGenerator

EVAL_BATCH = 256  # val images at a time

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """A network, its averaged weights, its optimiser and its training method."""

    def __init__(self, recipe: Recipe, network: nn.Module, val_images: Images, device: torch.device) -> None:
        self.recipe, self.val_images = recipe, val_images
        self.processes = Processes(device)
        self.device = self.processes.device
        self.format = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
        if self.device.type == "cpu":
            keep_freed_memory()
        network = prepared(network, recipe.train, self.processes)
        self.model = network.to(self.device).to(memory_format=self.format)
        average = get_ema_multi_avg_fn(recipe.train.ema)
        self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.optimizer = make_optimizer(self.model, recipe.train, recipe.sparta.lr_multiple)
        self.method = find_method(recipe)
        self.scaler = GradScaler(self.device.type, enabled=recipe.train.amp == "fp16")
        self.twin = self._make_twin()
        self.epochs_done = 0

    def _make_twin(self) -> FoldedCopy | None:
        """Return the network that attacks run on where it is not the one that learns."""
        settings = self.recipe.train
        if not (settings.fold_norms or settings.compile):
            return None
        example = self._to_device(self.val_images.batch([0, 1])[0])
        return FoldedCopy(self.model, example, fold=settings.fold_norms, compiled=settings.compile)

    @contextmanager
    def _attacked(self, model: nn.Module) -> Iterator[nn.Module]:
        """Give the network to attack, in eval mode, for a model whose weights do not change meanwhile."""
        model.eval()
        seen: nn.Module = model
        if self.twin is not None:
            self.twin.follow(model)
            seen = self.twin.eval()
        if self.recipe.train.amp == "fp16":
            seen = Scaled(seen).eval()
        with self._autocast():
            yield seen

    def _step(self, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """Attack the batch in eval mode, then descend on what the attack found in train mode."""
        weight = generator.weight if isinstance(generator, ShardedGenerator) else 1.0
        with self._attacked(self.model) as seen:
            objective = self.method(seen, pixels, labels, generator)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._weights_perturbed(objective, weight):
            loss = self._evaluate(objective)
            self._backward(loss)
        self.processes.average_step(self.model, loss, weight)
        self._descend()
        self.ema.update_parameters(self.model)
        return loss.detach()

    def _backward(self, loss: Tensor) -> None:
        """Compute gradients; planes that are computed again move no running statistics a second time."""
        again = running_statistics(self.model) if self.recipe.train.grad_checkpointing else []
        before = [each.clone() for each in again]
        self.scaler.scale(loss).backward()
        for each, value in zip(again, before, strict=True):
            each.copy_(value)

    def _descend(self) -> None:
        if self.recipe.train.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.train.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _evaluate(self, objective: Objective) -> Tensor:
        with self._autocast():
            return objective(self.model)

    def _weights_perturbed(self, objective: Objective, weight: float) -> AbstractContextManager[None]:
        settings = self.recipe.train
        if not settings.awp or self.epochs_done < settings.awp_start:
            return nullcontext()
        return perturbed(
            self.model, lambda: self.scaler.scale(self._evaluate(objective)), settings.awp,
            lambda gradients: self.processes.average(gradients, weight),
        )  # fmt: skip

    def validate(self, model: nn.Module) -> tuple[float, float]:
        """Return (clean, robust) accuracy on the val split, robust under PGD."""
        model.eval()
        generator = self._generator(0)
        count = len(self.val_images)
        parts = batch_indices(count, EVAL_BATCH, None)
        mine = [part[generator.for_batch(len(part)).shard] for part in parts]
        clean = robust = 0.0
        for part, batch in zip(
            parts, load_batches(self.val_images, mine, self.recipe.data.workers), strict=True
        ):
            self._between_batches()
            pixels, labels = self._to_device(batch[0]), batch[1].to(self.device)
            adversarial = self._attack(model, pixels, labels, generator.for_batch(len(part)))
            counted = generator.weight > 0
            clean += counted * self._right(model, pixels, labels)
            robust += counted * self._right(model, adversarial, labels)
        clean, robust = self.processes.total(clean, robust)
        return clean / count, robust / count

    def _watch(self) -> Watched:
        """Attack some val images with one step and with many, on the network itself."""
        count = min(EVAL_BATCH, len(self.val_images))
        generator, kind = self._generator(0).for_batch(count), self.recipe.attack.single_step
        pixels, labels = self.val_images.batch(range(count)[generator.shard])
        pixels, labels = self._to_device(pixels), labels.to(self.device)
        many = self._attack(self.model, pixels, labels, generator)
        with self._attacked(self.model) as seen:
            one = single_step(seen, pixels, labels, self.recipe.threat, kind, generator)
        counted = generator.weight > 0
        right = [counted * self._right(self.model, images, labels) for images in (one, many)]
        return Watched(*(number / count for number in self.processes.total(*right)))

    def _generator(self, seed: int) -> ShardedGenerator:
        generator = self.processes.generator()
        generator.manual_seed(seed)
        return generator

    def _attack(self, model: nn.Module, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        attack, threat = self.recipe.attack, self.recipe.threat
        with self._attacked(model) as seen:
            return pgd(
                seen, pixels, labels, threat, steps=attack.val_steps,
                step_size=attack.step_size * threat.eps,
                generator=generator if attack.random_start else None,
            )  # fmt: skip

    def _right(self, model: nn.Module, pixels: Tensor, labels: Tensor) -> int:
        with torch.no_grad(), self._autocast():
            return int((model(pixels).argmax(1) == labels).sum())

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.train.amp == "off":
            return nullcontext()
        return torch.autocast(self.device.type, AMP[self.recipe.train.amp])

    def _to_device(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device, non_blocking=True).contiguous(memory_format=self.format)

    def _between_batches(self) -> None:
        """Do what a long validation must be interrupted for."""
