"""A training run: its loop of epochs and steps, its state on disk, the bundle that it ends in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Generator, Tensor

from robust_export.bundle import Bundle
from robust_export.data.augment import augment, cutmix, randaugment
from robust_export.data.datasets import Batch, load_splits
from robust_export.data.feed import Feed, load_extra_images
from robust_export.errors import TrainingError, TrainingStopped
from robust_export.nn.build import build_model
from robust_export.nn.sparta import sparta_modules
from robust_export.nn.sparta_file import save_sparta
from robust_export.nn.state_dict import load_tensors, tensors
from robust_export.recipe.recipe_file import to_toml
from robust_export.recipe.schema import Recipe
from robust_export.training import checkpoint as ckpt
from robust_export.training.health import Watched, collapsed, explain, finite, first_bad
from robust_export.training.manifest import manifest, sparta_source
from robust_export.training.model_setup import check_last_batch
from robust_export.training.optim import learning_rate_factor, set_learning_rate
from robust_export.training.progress import Epoch, Position, Sums, restore_rng, rng_state
from robust_export.training.step import Learner
from robust_export.training.tracking import Tracking
from robust_export.utils.files import write_atomically, write_json
from robust_export.utils.sharded_rng import ShardedGenerator
from robust_export.utils.stop import StopRequest

OnEpoch = Callable[[Epoch, int], None]  # an epoch, and how many there will be
OnStep = Callable[[int, int, int], None]  # the epoch from 1, its step from 1, and its steps

CHECK_EVERY = 20  # steps after which the losses are looked at: each look waits for the GPU


class Run(Learner):
    """A training run in a folder: a network that learns, its epochs, its best weights so far."""

    def __init__(
        self, recipe: Recipe, folder: Path, device: torch.device, stop: StopRequest | None = None
    ) -> None:
        self.folder, self.stop = folder, stop or StopRequest()
        spec, data = recipe.model, recipe.data
        self.train_images, val_images = load_splits(
            data.name, spec.image_size, spec.in_chans, data.dir, data.val_fraction
        )
        extra = None
        if data.extra:
            extra = load_extra_images(data.extra, self.train_images, spec.image_size, spec.in_chans)
        self.feed = Feed(self.train_images, recipe.train.batch_size, data.workers, extra, data.extra_ratio)
        self.sparta_from = sparta_source(recipe.sparta)
        torch.manual_seed(recipe.train.seed)
        network = build_model(spec, recipe.sparta, len(self.train_images.classes), recipe.train.seed)
        super().__init__(recipe, network, val_images, device)
        check_last_batch(self.feed.batch_size_at(len(self.feed) - 1), recipe.train, self.processes)
        self.history: list[Epoch] = []
        self.watched: list[Watched] = []  # of single-step training only
        self.position = Position()
        self.saved_at = ""
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0

    # --- the loop ---

    def start(self) -> None:
        """Take up the last checkpoint, or save the first."""
        found = self.processes.rank_zero_broadcast(self._find)
        if found:
            self._load(*found)
        else:
            self._save()

    def _find(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Write the recipe, clear away what a killed process left, and return the last checkpoint."""
        write_atomically(self.folder / "recipe.toml", to_toml(self.recipe))
        for stale in self.folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
            stale.unlink()
        folder = self.folder / ckpt.FOLDER
        return ckpt.load_checkpoint(folder) if ckpt.has_checkpoint(folder) else None

    def fit(self, on_epoch: OnEpoch, on_step: OnStep = lambda epoch, step, steps: None) -> None:
        """Train epoch by epoch until all are done, patience is over, or robustness collapsed."""
        epochs = self.recipe.train.epochs
        tracking = Tracking(self.recipe, self.folder, self.processes)
        try:
            with self.stop.observing(), tracking:
                while len(self.history) < epochs and not self._out_of_patience() and not self.stopped:
                    epoch = self._one_epoch(on_step)
                    tracking.epoch(epoch, self.optimizer.param_groups[0]["lr"])
                    on_epoch(epoch, epochs)
        except RuntimeError as error:
            raise explain(error) from error

    def _one_epoch(self, on_step: OnStep) -> Epoch:
        started = time.monotonic()
        loss = self._train_epoch(len(self.history), on_step)
        clean, robust = self.validate(self.ema.module)
        if self.recipe.train.method == "fast":
            self.watched.append(self._watch())
        epoch = Epoch(len(self.history) + 1, loss, clean, robust, time.monotonic() - started)
        if not self.best or self._score(epoch) > self._score(self.history[self.best_epoch - 1]):
            self.best = {k: v.detach().clone() for k, v in tensors(self.ema.module).items()}
            self.best_epoch = epoch.epoch
        self.history.append(epoch)
        self.position = Position()
        self._save()
        return epoch

    def _train_epoch(self, index: int, on_step: OnStep) -> float:
        """One pass over the training images, or the rest of one; its randomness comes from (seed, index)."""
        settings, first, steps = self.recipe.train, self.position.step, len(self.feed)
        self.epochs_done = index
        seed = settings.seed * 1_000_003 + index
        torch.manual_seed(seed)  # dropout and the like
        generator = self._generator(seed)
        if self.position.rng:
            restore_rng(self.position.rng, generator, self.device)
        sums = Sums(self.position, self.device)
        for step, batch in enumerate(self._batches(seed, first), first):
            count = self.feed.batch_size_at(step)
            progress = (index * steps + step) / (settings.epochs * steps)
            rate = learning_rate_factor(progress, settings.schedule, settings.warmup)
            set_learning_rate(self.optimizer, rate)
            pixels, labels = self._prepare(batch, generator.for_batch(count))
            with self.processes.apart(seed * steps + step):
                sums.add(self._step(pixels, labels, generator.for_batch(count)), count)
            on_step(index + 1, step + 1, steps)
            self._after_step(step + 1, sums, generator)
        return sums.mean()

    def _after_step(self, done: int, sums: Sums, generator: Generator) -> None:
        """Look at the losses now and then, and save the state where it is due or asked for."""
        every, last = self.recipe.train.checkpoint_every, done == len(self.feed)
        due, asked = every > 0 and done % every == 0 and not last, self._asked()
        if due or last or asked or len(sums.recent) == CHECK_EVERY:
            self._check(sums.recent, done)
            sums.recent.clear()
        if due or last or asked:
            self.position = sums.position(done, rng_state(generator, self.device))
        if due:
            self._save()
        if asked:
            self._end()

    def _batches(self, seed: int, skip: int) -> Iterator[Batch]:
        """Yield this process's part of each batch; whole ones where an image's change depends on others."""
        data = self.recipe.data
        self.whole = data.randaugment > 0 or data.cutmix > 0
        return self.feed.epoch(seed, skip, None if self.whole else self.processes.generator())

    def _prepare(self, batch: Batch, generator: ShardedGenerator) -> Batch:
        """Return this process's part on the device, augmented; with CutMix its labels are probabilities."""
        data, (pixels, labels) = self.recipe.data, batch
        with generator.unsharded() if self.whole else nullcontext():
            pixels = augment(pixels, data.shift, data.flip, generator)
        if self.whole:
            pixels = randaugment(pixels, data.randaugment, data.randaugment_magnitude)
            pixels, labels = cutmix(pixels, labels, data.cutmix, len(self.train_images.classes))
            pixels, labels = pixels[generator.shard], labels[generator.shard]
        return self._to_device(pixels), labels.to(self.device)

    # --- when it ends ---

    @property
    def stopped(self) -> str:
        """Why it ends before its last epoch, beside patience; nothing where it does not."""
        if not collapsed(self.watched):
            return ""
        best, last = max(w.multi_step for w in self.watched), self.watched[-1]
        return (
            f"catastrophic overfitting in epoch {len(self.watched)}: accuracy under PGD fell from {best:.1%} "
            f"to {last.multi_step:.1%}, under a single step it is {last.single_step:.1%}; the weights "
            f"kept are those of epoch {self.best_epoch}"
        )

    def _score(self, epoch: Epoch) -> tuple[float, float]:
        """Return what the best epoch has most of: robust accuracy, or clean if nothing attacks."""
        clean, robust = epoch.clean_accuracy, epoch.robust_accuracy
        return (robust, clean) if self.recipe.adversarial else (clean, robust)

    def _out_of_patience(self) -> bool:
        patience = self.recipe.train.patience
        return bool(patience) and len(self.history) - self.best_epoch >= patience

    def _check(self, losses: list[Tensor], done: int) -> None:
        """Raise TrainingError if one of the losses up to step `done`, or a weight, is no number."""
        bad = first_bad(losses)
        if bad is None and finite(self.model):
            return
        step = done if bad is None else done - len(losses) + bad + 1
        what = "a weight became nan or inf" if bad is None else f"the loss became {losses[bad].item()}"
        message = (
            f"{what} in epoch {len(self.history) + 1}, step {step} of {len(self.feed)}. The checkpoint of "
            f"{self.saved_at} is whole; lower train.lr (now {self.recipe.train.lr:g}) or set "
            "train.clip_grad, and train again."
        )
        raise self.processes.alike(TrainingError(message))

    def _between_batches(self) -> None:
        """Save the state and raise TrainingStopped if somebody asked to stop."""
        if self._asked():
            self._end()

    def _asked(self) -> bool:
        """Tell whether one of the processes was asked to stop."""
        return self.processes.any(self.stop.requested)

    def _end(self) -> None:
        self._save()
        message = (
            f"training stopped as asked and lost nothing: {self.folder} has its state at {self.saved_at}"
        )
        raise self.processes.alike(TrainingStopped(message))

    # --- what is kept on disk ---

    def _save(self) -> None:
        self.processes.rank_zero_broadcast(self._write)
        self.saved_at = self._where()

    def _write(self) -> None:
        state = {
            "model": tensors(self.model), "ema": tensors(self.ema), "best": self.best,
            "optimizer": ckpt.optimizer_tensors(self.optimizer), "rng": self.position.rng,
        }  # fmt: skip
        facts = {
            "best_epoch": self.best_epoch, "history": [asdict(e) for e in self.history],
            "position": self.position.facts(), "watched": [asdict(w) for w in self.watched],
            "sparta_from": self.sparta_from, "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        ckpt.save_checkpoint(
            self.folder / ckpt.FOLDER, len(self.history), state, facts, step=self.position.step
        )

    def _where(self) -> str:
        """Return "epoch 2", or "epoch 3, step 40" within an epoch."""
        done = self.position.step
        return f"epoch {len(self.history) + 1}, step {done}" if done else f"epoch {len(self.history)}"

    def _load(self, state: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
        load_tensors(self.model, state["model"])
        load_tensors(self.ema, state["ema"])
        ckpt.load_optimizer_tensors(self.optimizer, state.get("optimizer", {}))
        self.best = {k: v.to(self.device) for k, v in state.get("best", {}).items()}
        self.best_epoch = facts["best_epoch"]
        self.history = [Epoch(**entry) for entry in facts["history"]]
        self.position = Position(**facts.get("position", {}), rng=state.get("rng", {}))
        self.watched = [Watched(**entry) for entry in facts.get("watched", [])]
        self.sparta_from = facts.get("sparta_from", self.sparta_from)
        if facts.get("scaler"):
            self.scaler.load_state_dict(facts["scaler"])
        self.saved_at = self._where()

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
        return Bundle.create(self.folder, manifest(self, name), files)
