"""Training: a recipe in, a bundle out; by attacks of several kinds, resumable at any step."""

from __future__ import annotations

from pathlib import Path

from robust_export.bundle import MANIFEST, Bundle
from robust_export.recipe.schema import Recipe
from robust_export.training.distributed import Processes
from robust_export.training.progress import Epoch
from robust_export.training.run_dir import check_same_recipe, prepare
from robust_export.training.trainer import OnEpoch, OnStep, Run
from robust_export.utils.device import find_device
from robust_export.utils.files import replace_folder
from robust_export.utils.stop import StopRequest

__all__ = ["Epoch", "OnEpoch", "OnStep", "Run", "StopRequest", "train"]


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
    """Train a network as the recipe says and return the finished bundle in `out`.

    The state is saved after every epoch, every `train.checkpoint_every` steps, and when `stop` asks for it.
    Whenever it is interrupted, the same call with `resume` gives weights.safetensors that are the same to the
    last bit (same machine, same versions).

    Where torchrun or accelerate launch started several processes, they share every batch, and the first one
    writes; each calls this with the same arguments and gets the same bundle.

    Args:
        resume: go on where a run in `out` stopped; start where there is none; return at once
            where it is finished.
        force: replace a bundle that is there already, once the new one is finished.
        name: the bundle's, by default that of its folder.
        stop: asks the run to save its state after the step it is in, and to stop.

    Raises:
        TrainingError: if `out` holds something else, the recipe changed, the loss diverged, or a process that
            decodes images died.
        TrainingStopped: if `stop` asked for it.
    """
    target, place = Path(out), find_device(device)
    processes = Processes(place)

    def begin() -> tuple[Path, bool]:
        folder = prepare(target, resume=resume, force=force)
        if resume:
            check_same_recipe(recipe, folder)
        return folder, (folder / MANIFEST).is_file()

    folder, done = processes.rank_zero_broadcast(begin)
    run = None
    if not done:
        run = processes.each(lambda: Run(recipe, folder, place, stop))
        run.start()
        run.fit(on_epoch, on_step)

    def end() -> Bundle:
        if run is not None:
            run.finish(name or target.name)
        if folder != target:
            replace_folder(folder, target)
        return Bundle.open(target)

    return processes.rank_zero_broadcast(end)
