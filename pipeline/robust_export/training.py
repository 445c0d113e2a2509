"""Adversarial training: a recipe in, a bundle out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robust_export import checkpoint as ckpt
from robust_export.attacks.pgd import pgd
from robust_export.bundle import MANIFEST, Bundle
from robust_export.config import Recipe
from robust_export.data import augment, batch_count, batches, load_splits
from robust_export.device import find_device
from robust_export.errors import TrainingError
from robust_export.files import replace_folder, write_atomically, write_json
from robust_export.models import build_model
from robust_export.optim import learning_rate_factor, make_optimizer, set_learning_rate
from robust_export.provenance import data_facts, machine, now, versions
from robust_export.recipe import to_toml
from robust_export.sparta import save_sparta, sparta_modules
from robust_export.weights import load_tensors, tensors
from robust_export.workspace import check_same_recipe, prepare


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to. Accuracies are of the averaged weights on the val split."""

    epoch: int  # from 1
    loss: float  # mean over the training images, under attack
    clean_accuracy: float
    robust_accuracy: float  # under PGD with attack.val_steps steps
    seconds: float


OnEpoch = Callable[[Epoch, int], None]  # an epoch, and how many there will be
OnStep = Callable[[int, int, int], None]  # the epoch from 1, its step from 1, and its steps


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
    on_epoch: OnEpoch = lambda epoch, epochs: None,
    on_step: OnStep = lambda epoch, step, steps: None,
    name: str | None = None,
) -> Bundle:
    """Train a network as the recipe says and return the finished bundle in `out`.

    The state is saved after every epoch. Whenever it is interrupted, the same call with `resume`
    gives weights.safetensors that are the same to the last bit (same machine, same versions).

    Args:
        resume: go on where a run in `out` stopped; start where there is none; return at once
            where it is finished.
        force: replace a bundle that is there already, once the new one is finished.
        name: the bundle's, by default that of its folder.

    Raises:
        TrainingError: if `out` holds something else, the recipe changed, or the loss diverged.
    """
    target = Path(out)
    folder = prepare(target, resume=resume, force=force)
    if resume:
        check_same_recipe(recipe, folder)
    if not (folder / MANIFEST).is_file():
        run = Run(recipe, folder, find_device(device))
        run.start()
        run.fit(on_epoch, on_step)
        run.finish(name or target.name)
    if folder != target:
        replace_folder(folder, target)
    return Bundle.open(target)


class Run:
    """A training run in a folder: its network, its averaged weights, its best weights so far."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device) -> None:
        self.recipe, self.folder, self.device = recipe, folder, device
        self.train_images, self.val_images = load_splits(
            recipe.data.name, recipe.model.image_size, recipe.model.in_chans,
            recipe.data.dir, recipe.data.val_fraction,
        )  # fmt: skip
        torch.manual_seed(recipe.train.seed)
        network = build_model(recipe.model, recipe.sparta, len(self.train_images.classes))
        self.format = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
        self.model = network.to(device).to(memory_format=self.format)
        average = get_ema_multi_avg_fn(recipe.train.ema)
        self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.optimizer = make_optimizer(self.model, recipe.train, recipe.sparta.lr_multiple)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0

    # --- the loop ---

    def start(self) -> None:
        """Take up the last checkpoint, or save the first."""
        write_atomically(self.folder / "recipe.toml", to_toml(self.recipe))
        for stale in self.folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
            stale.unlink()
        if ckpt.has_checkpoint(self.folder / ckpt.FOLDER):
            self._load()
        else:
            self._save()

    def fit(self, on_epoch: OnEpoch, on_step: OnStep = lambda epoch, step, steps: None) -> None:
        """Train epoch by epoch until all are done or patience is over."""
        settings = self.recipe.train
        while len(self.history) < settings.epochs and not self._out_of_patience():
            started = time.monotonic()
            loss = self._train_epoch(len(self.history), on_step)
            clean, robust = self.validate(self.ema.module)
            seconds = time.monotonic() - started
            epoch = Epoch(len(self.history) + 1, loss, clean, robust, seconds)
            if not self.best or self._score(epoch) > self._score(self.history[self.best_epoch - 1]):
                self.best = {k: v.detach().clone() for k, v in tensors(self.ema.module).items()}
                self.best_epoch = epoch.epoch
            self.history.append(epoch)
            self._save()
            on_epoch(epoch, settings.epochs)

    def _train_epoch(self, index: int, on_step: OnStep) -> float:
        """One pass over the training images; all its randomness comes from (seed, index)."""
        settings, data = self.recipe.train, self.recipe.data
        seed = settings.seed * 1_000_003 + index
        torch.manual_seed(seed)  # dropout and the like
        generator = Generator().manual_seed(seed)
        steps = batch_count(self.train_images, settings.batch_size)
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        seen = 0
        for step, (pixels, labels) in enumerate(
            batches(self.train_images, settings.batch_size, shuffle_seed=seed, workers=data.workers)
        ):
            progress = (index * steps + step) / (settings.epochs * steps)
            rate = learning_rate_factor(progress, settings.schedule, settings.warmup)
            set_learning_rate(self.optimizer, rate)
            pixels = self._to_device(augment(pixels, data.shift, data.flip, generator))
            loss = self._step(pixels, labels.to(self.device), generator)
            total += loss * len(labels)
            seen += len(labels)
            on_step(index + 1, step + 1, steps)
        mean = total.item() / seen
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss became {mean} in epoch {index + 1}. The checkpoint of epoch {index} is "
                f"whole; lower train.lr (now {settings.lr:g}) or set train.clip_grad, and train "
                "again."
            )
        return mean

    def _step(self, pixels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """Attack the batch in eval mode, then descend on what the attack found in train mode."""
        settings, attack = self.recipe.train, self.recipe.attack
        if attack.steps:
            pixels = self._attack(self.model, pixels, labels, attack.steps, generator)
        self.model.train()
        with self._autocast():
            logits = self.model(pixels)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_grad)
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        return loss.detach()

    def validate(self, model: nn.Module) -> tuple[float, float]:
        """Return (clean, robust) accuracy on the val split, robust under PGD."""
        model.eval()
        generator = Generator().manual_seed(0)
        clean = robust = 0
        for pixels, labels in batches(self.val_images, 256, workers=self.recipe.data.workers):
            pixels, labels = self._to_device(pixels), labels.to(self.device)
            adversarial = self._attack(model, pixels, labels, self.recipe.attack.val_steps, generator)
            with torch.no_grad(), self._autocast():
                clean += int((model(pixels).argmax(1) == labels).sum())
                robust += int((model(adversarial).argmax(1) == labels).sum())
        return clean / len(self.val_images), robust / len(self.val_images)

    def _attack(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, steps: int, generator: Generator
    ) -> Tensor:
        attack, threat = self.recipe.attack, self.recipe.threat
        model.eval()
        with self._autocast():
            return pgd(
                model, pixels, labels, threat, steps=steps, step_size=attack.step_size * threat.eps,
                generator=generator if attack.random_start else None,
            )  # fmt: skip

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.train.amp == "off":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _to_device(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device, non_blocking=True).contiguous(memory_format=self.format)

    def _score(self, epoch: Epoch) -> tuple[float, float]:
        """Return what the best epoch has most of: robust accuracy, or clean if nothing attacks."""
        clean, robust = epoch.clean_accuracy, epoch.robust_accuracy
        return (robust, clean) if self.recipe.attack.steps else (clean, robust)

    def _out_of_patience(self) -> bool:
        patience = self.recipe.train.patience
        return bool(patience) and len(self.history) - self.best_epoch >= patience

    # --- what is kept on disk ---

    def _save(self) -> None:
        state = {
            "model": tensors(self.model), "ema": tensors(self.ema), "best": self.best,
            "optimizer": ckpt.optimizer_tensors(self.optimizer),
        }  # fmt: skip
        facts = {"best_epoch": self.best_epoch, "history": [asdict(e) for e in self.history]}
        ckpt.save_checkpoint(self.folder / ckpt.FOLDER, len(self.history), state, facts)

    def _load(self) -> None:
        state, facts = ckpt.load_checkpoint(self.folder / ckpt.FOLDER)
        load_tensors(self.model, state["model"])
        load_tensors(self.ema, state["ema"])
        ckpt.load_optimizer_tensors(self.optimizer, state.get("optimizer", {}))
        self.best = {k: v.to(self.device) for k, v in state.get("best", {}).items()}
        self.best_epoch = facts["best_epoch"]
        self.history = [Epoch(**entry) for entry in facts["history"]]

    def finish(self, name: str) -> Bundle:
        """Write the best weights and the manifest that makes the folder a bundle."""
        load_tensors(self.ema.module, self.best)
        weights = {k: v.detach().cpu().contiguous() for k, v in tensors(self.ema.module).items()}
        write_atomically(self.folder / "weights.safetensors", save(weights))
        write_json(self.folder / "history.json", [asdict(e) for e in self.history])
        files = {"recipe.toml": "recipe", "weights.safetensors": "weights", "history.json": "history"}
        if sparta_modules(self.ema.module):
            save_sparta(self.ema.module, self.folder / "sparta.safetensors")
            files["sparta.safetensors"] = "sparta"
        return Bundle.create(self.folder, self._manifest(name), files)

    def _manifest(self, name: str) -> dict[str, Any]:
        spec, images = self.recipe.model, self.train_images
        plane = [spec.in_chans, spec.image_size, spec.image_size]
        best = self.history[self.best_epoch - 1]
        return {
            "name": name, "created": now(), "model": spec.name, "labels": list(images.classes),
            "input": {"name": "pixels", "dtype": "float32", "shape": ["N", *plane]},
            "output": {"name": "logits", "dtype": "float32", "shape": ["N", len(images.classes)]},
            "preprocessing": {
                "range": [0, 1], "channels": {1: "grey", 3: "RGB"}.get(spec.in_chans, "as trained"),
                "resize": "shorter side, bilinear, antialiased", "crop": "centre",
                "normalisation": "inside the model",
            },
            "threat": asdict(self.recipe.threat),
            "provenance": {
                "recipe": "recipe.toml", "seed": self.recipe.train.seed,
                "data": data_facts(self.train_images, self.val_images),
                "best_epoch": self.best_epoch, "epochs": len(self.history),
                "val": {
                    "clean_accuracy": best.clean_accuracy, "robust_accuracy": best.robust_accuracy,
                },
                "versions": versions(), "machine": machine(self.device),
            },
        }  # fmt: skip
