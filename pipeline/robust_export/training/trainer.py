"""A training run: epochs, checkpoints, early stopping and the best weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Generator, Tensor

from robust_export.bundle import Bundle
from robust_export.data.datasets import load_splits
from robust_export.errors import TrainingError, TrainingStopped
from robust_export.nn.build import build_model, find_sparta_file
from robust_export.nn.sparta import sparta_modules
from robust_export.nn.sparta_file import save_sparta
from robust_export.nn.state_dict import load_tensors, tensors
from robust_export.recipe.recipe_file import to_toml
from robust_export.recipe.schema import Recipe
from robust_export.training import checkpoint as ckpt
from robust_export.training.batches import TrainingBatches
from robust_export.training.distributed import Processes
from robust_export.training.health import (
    RobustAccuracies,
    catastrophic_overfitting,
    explain,
    first_non_finite,
    has_finite_parameters,
)
from robust_export.training.manifest import TrainingResult, manifest, sparta_origin
from robust_export.training.model_setup import check_last_batch
from robust_export.training.progress import Epoch, LossSum, Position, restore_rng, rng_state
from robust_export.training.step import TrainStep
from robust_export.training.tracking import Tracking
from robust_export.training.validate import Validator
from robust_export.utils.files import write_atomically, write_json
from robust_export.utils.stop import StopRequest

OnEpoch = Callable[[Epoch, int], None]  # (epoch, number of epochs)
OnStep = Callable[[int, int, int], None]  # (epoch from 1, step from 1, steps per epoch)

CHECK_EVERY = 20  # steps between checks of the losses: each check waits for the GPU


class Trainer:
    """Trains the model of a recipe in a folder.

    Attributes:
        history: the completed epochs.
        overfitting_checks: one per epoch; method "fast" only.
        position: position within the current epoch.
        saved_at: description of the last checkpoint, for messages.
        best: averaged weights of the best epoch.
        best_epoch: its number, from 1; 0 before the first.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, processes: Processes, stop: StopRequest | None = None
    ) -> None:
        self.recipe, self.folder, self.processes = recipe, folder, processes
        self.stop = stop or StopRequest()
        spec, data, settings = recipe.model, recipe.data, recipe.train
        train_images, val_images = load_splits(
            data.name, spec.image_size, spec.in_chans, data.dir, data.val_fraction
        )
        self.batches = TrainingBatches(recipe, train_images, processes)
        load = recipe.sparta.load
        self.sparta_origin = sparta_origin(find_sparta_file(load), recipe.sparta) if load else {}
        torch.manual_seed(settings.seed)
        model = build_model(spec, recipe.sparta, len(train_images.classes), settings.seed)
        total_steps = settings.epochs * len(self.batches)
        self.step = TrainStep(recipe, model, val_images.batch([0, 1])[0], total_steps, processes)
        self.validator = Validator(recipe, val_images, self.step)
        check_last_batch(self.batches.size(len(self.batches) - 1), settings, processes)
        self.history: list[Epoch] = []
        self.overfitting_checks: list[RobustAccuracies] = []
        self.position = Position()
        self.saved_at = ""
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0

    # --- epochs and steps ---

    def start(self) -> None:
        """Restore the last checkpoint, or save the first one."""
        checkpoint = self.processes.rank_zero_broadcast(self._find_checkpoint)
        if checkpoint:
            self._restore(*checkpoint)
        else:
            self.save()

    def fit(self, on_epoch: OnEpoch, on_step: OnStep = lambda epoch, step, steps: None) -> None:
        """Train until all epochs are done, patience is exhausted, or catastrophic overfitting occurred."""
        epochs = self.recipe.train.epochs
        tracking = Tracking(self.recipe, self.folder, self.processes)
        try:
            with self.stop.observing(), tracking:
                while len(self.history) < epochs and not self._patience_exhausted() and not self.stopped:
                    epoch = self._run_epoch(on_step)
                    tracking.log_epoch(epoch, self.step.learning_rate)
                    on_epoch(epoch, epochs)
        except RuntimeError as error:
            raise explain(error) from error

    def _run_epoch(self, on_step: OnStep) -> Epoch:
        """Train, validate and save one epoch; keep its weights if it is the best."""
        started, averaged = time.monotonic(), self.step.ema.module
        loss = self._train_epoch(len(self.history), on_step)
        clean, robust = self.validator.accuracy(averaged, before_batch=self._stop_if_requested)
        if self.recipe.train.method == "fast":
            self.overfitting_checks.append(self.validator.robust_accuracies())
        epoch = Epoch(len(self.history) + 1, loss, clean, robust, time.monotonic() - started)
        if not self.best or self._score(epoch) > self._score(self.history[self.best_epoch - 1]):
            self.best = {k: v.detach().clone() for k, v in tensors(averaged).items()}
            self.best_epoch = epoch.epoch
        self.history.append(epoch)
        self.position = Position()
        self.save()
        return epoch

    def _train_epoch(self, index: int, on_step: OnStep) -> float:
        """Train on the batches after `self.position`, seeded by (seed, index); return the mean loss."""
        first, steps = self.position.step, len(self.batches)
        seed = self.recipe.train.seed * 1_000_003 + index
        torch.manual_seed(seed)  # for dropout and the augmentations that use torch's global generator
        generator = self.processes.sharded_generator(seed)
        if self.position.rng:
            restore_rng(self.position.rng, generator, self.processes.device)
        losses = LossSum(self.position, self.processes.device)
        for step, batch in enumerate(self.batches.epoch(seed, first), first):
            count = self.batches.size(step)
            pixels, labels = self.step.to_device(self.batches.augment(batch, generator.for_batch(count)))
            with self.processes.rank_specific_rng(seed * steps + step):
                losses.add(self.step(pixels, labels, generator.for_batch(count), index), count)
            on_step(index + 1, step + 1, steps)
            self._after_step(step + 1, losses, generator)
        return losses.mean()

    def _after_step(self, done: int, losses: LossSum, generator: Generator) -> None:
        """Check the losses now and then and before each save; save when due; stop if requested."""
        every, last = self.recipe.train.checkpoint_every, done == len(self.batches)
        due, stop = every > 0 and done % every == 0 and not last, self._stop_requested()
        if due or last or stop or len(losses.unchecked) == CHECK_EVERY:
            self._check_finite(losses.unchecked, done)
            losses.unchecked.clear()
        if due or last or stop:
            self.position = losses.position(done, rng_state(generator, self.processes.device))
        if due:
            self.save()
        if stop:
            self._save_and_stop()

    def _check_finite(self, losses: list[Tensor], done: int) -> None:
        """Raise TrainingError if one of the last losses, up to step `done`, or a weight is nan or inf."""
        bad = first_non_finite(losses)
        if bad is None and has_finite_parameters(self.step.model):
            return
        step = done if bad is None else done - len(losses) + bad + 1
        what = "a weight became nan or inf" if bad is None else f"the loss became {losses[bad].item()}"
        message = (
            f"{what} in epoch {len(self.history) + 1}, step {step} of {len(self.batches)}. The checkpoint of "
            f"{self.saved_at} is intact: reduce train.lr (now {self.recipe.train.lr:g}) or set "
            "train.clip_grad, and train again."
        )
        raise self.processes.reported_by_rank_zero(TrainingError(message))

    # --- ending early ---

    @property
    def stopped(self) -> str:
        """Message on catastrophic overfitting, which ends the run; "" if there is none."""
        checks = self.overfitting_checks
        if not catastrophic_overfitting(checks):
            return ""
        best, last = max(check.multi_step for check in checks), checks[-1]
        return (
            f"catastrophic overfitting in epoch {len(checks)}: accuracy under PGD fell from {best:.1%} "
            f"to {last.multi_step:.1%}, under a single step it is {last.single_step:.1%}; the weights "
            f"kept are those of epoch {self.best_epoch}"
        )

    def _score(self, epoch: Epoch) -> tuple[float, float]:
        """Return the accuracies in order of importance: robust first, or clean first in standard training."""
        clean, robust = epoch.clean_accuracy, epoch.robust_accuracy
        return (robust, clean) if self.recipe.adversarial else (clean, robust)

    def _patience_exhausted(self) -> bool:
        patience = self.recipe.train.patience
        return bool(patience) and len(self.history) - self.best_epoch >= patience

    def _stop_requested(self) -> bool:
        """Return whether a stop was requested on any process."""
        return self.processes.any(self.stop.requested)

    def _stop_if_requested(self) -> None:
        if self._stop_requested():
            self._save_and_stop()

    def _save_and_stop(self) -> None:
        self.save()
        message = f"training stopped as requested; its state at {self.saved_at} is saved in {self.folder}"
        raise self.processes.reported_by_rank_zero(TrainingStopped(message))

    # --- checkpoints and the bundle ---

    def save(self) -> None:
        """Save a checkpoint (rank 0)."""
        self.processes.rank_zero_broadcast(self._write_checkpoint)
        self.saved_at = self._describe_position()

    def _write_checkpoint(self) -> None:
        state = {**self.step.state(), "best": self.best, "rng": self.position.rng}
        facts = {
            "best_epoch": self.best_epoch, "history": [asdict(e) for e in self.history],
            "position": self.position.to_json(), "watched": [asdict(c) for c in self.overfitting_checks],
            "sparta_from": self.sparta_origin, "scaler": self.step.scaler.state_dict(),
        }  # fmt: skip
        ckpt.save_checkpoint(
            self.folder / ckpt.FOLDER, len(self.history), state, facts, step=self.position.step
        )

    def _describe_position(self) -> str:
        """Return "epoch 2", or "epoch 3, step 40" within an epoch."""
        done = self.position.step
        return f"epoch {len(self.history) + 1}, step {done}" if done else f"epoch {len(self.history)}"

    def _find_checkpoint(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Write the recipe, delete temporary files of a killed process, and return the last checkpoint."""
        write_atomically(self.folder / "recipe.toml", to_toml(self.recipe))
        for temporary in self.folder.rglob(".*.tmp"):
            temporary.unlink()
        folder = self.folder / ckpt.FOLDER
        return ckpt.load_checkpoint(folder) if ckpt.has_checkpoint(folder) else None

    def _restore(self, state: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
        self.best = {k: v.to(self.processes.device) for k, v in state.get("best", {}).items()}
        self.best_epoch = facts["best_epoch"]
        self.history = [Epoch(**entry) for entry in facts["history"]]
        self.position = Position(**facts.get("position", {}), rng=state.get("rng", {}))
        self.overfitting_checks = [RobustAccuracies(**entry) for entry in facts.get("watched", [])]
        self.sparta_origin = facts.get("sparta_from", self.sparta_origin)
        steps_done = len(self.history) * len(self.batches) + self.position.step
        self.step.load_state(state, facts.get("scaler", {}), steps_done)
        self.saved_at = self._describe_position()

    def write_bundle(self, name: str) -> Bundle:
        """Write the weights of the best epoch and the manifest, which makes the folder a bundle."""
        averaged = self.step.ema.module
        load_tensors(averaged, self.best)
        weights = {k: v.detach().cpu().contiguous() for k, v in tensors(averaged).items()}
        write_atomically(self.folder / "weights.safetensors", save(weights))
        write_json(self.folder / "history.json", [asdict(e) for e in self.history])
        files = {"recipe.toml": "recipe", "weights.safetensors": "weights", "history.json": "history"}
        if sparta_modules(averaged):
            save_sparta(averaged, self.folder / "sparta.safetensors")
            files["sparta.safetensors"] = "sparta"
        result = TrainingResult(
            self.recipe, self.batches.feed, self.validator.images, self.history, self.best_epoch,
            self.stopped, self.sparta_origin, self.processes,
        )  # fmt: skip
        return Bundle.create(self.folder, manifest(result, name), files)
