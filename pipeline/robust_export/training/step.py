"""One optimisation step of adversarial training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robust_export.data.datasets import Batch
from robust_export.nn.state_dict import load_tensors, tensors
from robust_export.recipe.schema import Recipe
from robust_export.training.attacked_model import AttackedModel
from robust_export.training.awp import perturbed_weights
from robust_export.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from robust_export.training.distributed import Processes, running_statistics
from robust_export.training.malloc import keep_freed_memory
from robust_export.training.methods import Objective, find_method
from robust_export.training.model_setup import prepare_model
from robust_export.training.optim import make_optimizer, make_schedule
from robust_export.training.precision import autocast
from robust_export.utils.sharded_rng import ShardedGenerator


class TrainStep:
    """Attacks a batch and takes one optimisation step on the result; owns all that the step changes.

    Args:
        model: the network to train.
        example: [2, C, H, W], pixels for checking a folded copy.
        total_steps: of the run, for the learning-rate schedule.

    Attributes:
        model: the network, on the device.
        ema: exponential moving average of its weights (`train.ema`) and buffers.
        attacked: gives the network that attacks differentiate.
        learning_rate: of the last step, of the first parameter group.
    """

    def __init__(
        self, recipe: Recipe, model: nn.Module, example: Tensor, total_steps: int, processes: Processes
    ) -> None:
        settings = recipe.train
        self.settings, self.processes, self.device = settings, processes, processes.device
        self.memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        if self.device.type == "cpu":
            keep_freed_memory()
        model = prepare_model(model, settings, processes)
        self.model = model.to(self.device).to(memory_format=self.memory_format)
        average = get_ema_multi_avg_fn(settings.ema)
        self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.optimizer = make_optimizer(self.model, settings, recipe.sparta.lr_multiple)
        self.schedule = make_schedule(self.optimizer, settings, total_steps)
        self.learning_rate = 0.0
        self.method = find_method(recipe)
        self.scaler = GradScaler(self.device.type, enabled=settings.amp == "fp16")
        self.attacked = AttackedModel(self.model, settings, self.device, self._pixels_to_device(example))

    def __call__(self, pixels: Tensor, labels: Tensor, generator: Generator, epochs_done: int = 0) -> Tensor:
        """Attack the batch in eval mode, then take an optimisation step in train mode; return the mean loss.

        Args:
            pixels, labels: the shard of this process, on the device.
            generator: on the CPU; source of the attack's randomness.
            epochs_done: number of completed epochs; AWP starts after `train.awp_start`.
        """
        weight = generator.weight if isinstance(generator, ShardedGenerator) else 1.0
        with self.attacked(self.model) as network:
            objective = self.method(network, pixels, labels, generator)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._perturbed_weights(objective, weight, epochs_done):
            loss = self._loss(objective)
            self._backward(loss)
        self.processes.average_step(self.model, loss, weight)
        self._update_weights()
        self.ema.update_parameters(self.model)
        return loss.detach()

    def to_device(self, batch: Batch) -> Batch:
        """Return the batch on the device, pixels in the memory format of the model."""
        pixels, labels = batch
        return self._pixels_to_device(pixels), labels.to(self.device)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint."""
        return {
            "model": tensors(self.model), "ema": tensors(self.ema),
            "optimizer": optimizer_tensors(self.optimizer),
        }  # fmt: skip

    def load_state(
        self, state: Mapping[str, dict[str, Tensor]], scaler: Mapping[str, Any], steps_done: int
    ) -> None:
        """Restore a checkpoint.

        Args:
            state: what `state` returned.
            scaler: state of `self.scaler`; empty if it is disabled.
            steps_done: number of steps since the start of the run, on a fresh `TrainStep`.
        """
        load_tensors(self.model, state["model"])
        load_tensors(self.ema, state["ema"])
        load_optimizer_tensors(self.optimizer, state.get("optimizer", {}))
        if scaler:
            self.scaler.load_state_dict(dict(scaler))
        for _ in range(
            steps_done
        ):  # a rate follows from the one before it: the same operations give the same bits
            self.schedule.step()

    def _backward(self, loss: Tensor) -> None:
        """Compute gradients. Gradient checkpointing runs norms twice: restore their running statistics."""
        statistics = running_statistics(self.model) if self.settings.grad_checkpointing else []
        saved = [tensor.clone() for tensor in statistics]
        self.scaler.scale(loss).backward()
        for tensor, value in zip(statistics, saved, strict=True):
            tensor.copy_(value)

    def _update_weights(self) -> None:
        if self.settings.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()

    def _loss(self, objective: Objective) -> Tensor:
        with autocast(self.settings.amp, self.device):
            return objective(self.model)

    def _perturbed_weights(
        self, objective: Objective, weight: float, epochs_done: int
    ) -> AbstractContextManager[None]:
        if not self.settings.awp or epochs_done < self.settings.awp_start:
            return nullcontext()
        return perturbed_weights(
            self.model, lambda: self.scaler.scale(self._loss(objective)), self.settings.awp,
            lambda gradients: self.processes.average(gradients, weight),
        )  # fmt: skip

    def _pixels_to_device(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device, non_blocking=True).contiguous(memory_format=self.memory_format)
