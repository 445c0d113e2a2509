"""`train`: train the model of a recipe and write its bundle."""

from __future__ import annotations

from pathlib import Path

from robust_export.bundle import MANIFEST, Bundle
from robust_export.recipe.schema import Recipe
from robust_export.training.distributed import Processes
from robust_export.training.run_dir import check_same_recipe, choose_folder
from robust_export.training.trainer import OnEpoch, OnStep, Trainer
from robust_export.utils.device import find_device
from robust_export.utils.files import replace_folder
from robust_export.utils.stop import StopRequest


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
    stop: StopRequest | None = None,
) -> Bundle:
    """Train the model of a recipe and return the finished bundle in `out`.

    A checkpoint is saved after every epoch, every `train.checkpoint_every` steps, and when `stop` requests
    it. After an interruption of any kind, the same call with `resume` gives the same weights.safetensors, bit
    for bit (on the same machine with the same versions).

    Processes started by torchrun or accelerate launch share every batch, and rank 0 writes. Each calls this
    function with the same arguments and gets the same bundle.

    Args:
        recipe: the recipe; written to `out` as recipe.toml.
        out: folder of the bundle.
        resume: continue the run in `out`; start one if there is none; return at once if it is finished.
        force: replace a bundle in `out`, once the new one is finished.
        device: "auto", "cpu", "cuda" or "cuda:N".
        on_epoch: called after each epoch with it and the number of epochs.
        on_step: called after each step with the epoch, the step (both from 1) and the steps per epoch.
        name: of the bundle; by default the name of its folder.
        stop: requests to save a checkpoint after the current step and to stop.

    Raises:
        TrainingError: if `out` contains other files, the recipe differs from that of the run, a loss or
            weight became nan or inf, or a loader process died.
        TrainingStopped: if `stop` requested it.
    """
    target, processes = Path(out), Processes(find_device(device))

    def open_folder() -> tuple[Path, bool]:
        """Return the folder to train in, and whether its run is finished."""
        folder = choose_folder(target, resume=resume, force=force)
        if resume:
            check_same_recipe(recipe, folder)
        return folder, (folder / MANIFEST).is_file()

    folder, finished = processes.rank_zero_broadcast(open_folder)
    trainer = None
    if not finished:
        trainer = processes.raise_on_all(lambda: Trainer(recipe, folder, processes, stop))
        trainer.start()
        trainer.fit(on_epoch, on_step)

    def write_bundle() -> Bundle:
        if trainer is not None:
            trainer.write_bundle(name or target.name)
        if folder != target:
            replace_folder(folder, target)
        return Bundle.open(target)

    return processes.rank_zero_broadcast(write_bundle)
