"""What follows a run elsewhere: TensorBoard, Weights & Biases or MLflow, through accelerate's interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from robust_export.errors import TrainingError
from robust_export.recipe.recipe_file import to_tables
from robust_export.recipe.schema import Recipe
from robust_export.training.distributed import Processes
from robust_export.training.progress import Epoch

INSTALL = {
    "tensorboard": "pip install 'robust-export[track]'",
    "wandb": "pip install 'robust-export[track]' wandb",
    "mlflow": "pip install 'robust-export[track]' mlflow",
}


class Tracker(Protocol):
    """The part of accelerate.tracking.GeneralTracker that a run needs."""

    def store_init_configuration(self, values: dict[str, Any]) -> Any: ...
    def log(self, values: dict[str, Any], step: int | None = None) -> Any: ...
    def finish(self) -> Any: ...


class Tracking:
    """Tells a tracker, on the first process, the recipe, and what each epoch came to.

    Where the recipe says "none" it does nothing.

    Args:
        folder: the bundle's; TensorBoard's files and MLflow's go to `folder`/tracking, which no bundle lists.
    """

    def __init__(self, recipe: Recipe, folder: Path, processes: Processes) -> None:
        self.recipe, self.folder = recipe, folder
        self.tracker: Tracker | None = None
        if recipe.train.tracker != "none":
            processes.rank_zero_broadcast(self._begin)

    def _begin(self) -> None:
        recipe = self.recipe
        self.tracker = _open(recipe.train.tracker, recipe.model.name, self.folder / "tracking")
        flat = {
            f"{section}.{key}": value if isinstance(value, str | int | float | bool) else str(value)
            for section, table in to_tables(recipe).items()
            for key, value in table.items()
        }
        self.tracker.store_init_configuration(flat)

    def epoch(self, epoch: Epoch, rate: float) -> None:
        """Log an epoch under its number; accuracies in [0, 1], `rate` the learning rate of its last step."""
        if self.tracker is None:
            return
        values = {
            "train/loss": epoch.loss, "train/learning_rate": rate, "val/clean_accuracy": epoch.clean_accuracy,
            "val/robust_accuracy": epoch.robust_accuracy, "seconds": epoch.seconds,
        }  # fmt: skip
        self.tracker.log(values, step=epoch.epoch)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        """Close it; what it has not yet written, it writes now."""
        if self.tracker is not None:
            self.tracker.finish()


def _open(kind: str, run: str, folder: Path) -> Tracker:
    """Return a started tracker.

    Raises:
        TrainingError: if its package is missing, or it cannot start (nobody is logged in).
    """
    try:
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # its classes ask it which process writes
        made = LOGGER_TYPE_TO_CLASS[kind]
        given = {"logging_dir": str(folder)} if made.requires_logging_directory else {}
        tracker = made(run, **given)
        if hasattr(tracker, "start"):
            tracker.start()
    except ImportError as error:
        raise TrainingError(f"tracker {kind!r} needs {error.name}: {INSTALL[kind]}") from None
    except Exception as error:  # each of them fails in ways of its own
        raise TrainingError(
            f"tracker {kind!r} cannot start: {error}\nTrain with --tracker none, or mend it."
        ) from None
    opened: Tracker = tracker
    return opened
