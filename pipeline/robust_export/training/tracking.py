"""Log a run to TensorBoard, Weights & Biases or MLflow, through the interface of accelerate."""

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
    """The methods of accelerate.tracking.GeneralTracker that are used."""

    def store_init_configuration(self, values: dict[str, Any]) -> Any: ...
    def log(self, values: dict[str, Any], step: int | None = None) -> Any: ...
    def finish(self) -> Any: ...


class Tracking:
    """Logs the recipe and the results of each epoch, on rank 0; nothing if `train.tracker` is "none".

    Args:
        folder: of the bundle; TensorBoard and MLflow write to `folder`/tracking, which the manifest omits.
    """

    def __init__(self, recipe: Recipe, folder: Path, processes: Processes) -> None:
        self.recipe, self.folder = recipe, folder
        self.tracker: Tracker | None = None
        if recipe.train.tracker != "none":
            processes.rank_zero_broadcast(self._start)

    def _start(self) -> None:
        recipe = self.recipe
        self.tracker = _start_tracker(recipe.train.tracker, recipe.model.name, self.folder / "tracking")
        flat = {
            f"{section}.{key}": value if isinstance(value, str | int | float | bool) else str(value)
            for section, table in to_tables(recipe).items()
            for key, value in table.items()
        }
        self.tracker.store_init_configuration(flat)

    def log_epoch(self, epoch: Epoch, learning_rate: float) -> None:
        """Log an epoch with its number as the step; `learning_rate` is that of its last step."""
        if self.tracker is None:
            return
        values = {
            "train/loss": epoch.loss, "train/learning_rate": learning_rate,
            "val/clean_accuracy": epoch.clean_accuracy, "val/robust_accuracy": epoch.robust_accuracy,
            "seconds": epoch.seconds,
        }  # fmt: skip
        self.tracker.log(values, step=epoch.epoch)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        """Flush and close the tracker."""
        if self.tracker is not None:
            self.tracker.finish()


def _start_tracker(kind: str, run: str, folder: Path) -> Tracker:
    """Return a started tracker.

    Raises:
        TrainingError: if its package is missing, or it cannot start (for example without a login).
    """
    try:
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # the trackers read the rank from it
        tracker_class = LOGGER_TYPE_TO_CLASS[kind]
        options = {"logging_dir": str(folder)} if tracker_class.requires_logging_directory else {}
        tracker = tracker_class(run, **options)
        if hasattr(tracker, "start"):
            tracker.start()
    except ImportError as error:
        raise TrainingError(f"tracker {kind!r} needs {error.name}: {INSTALL[kind]}") from None
    except Exception as error:  # each tracker raises exceptions of its own
        raise TrainingError(
            f"tracker {kind!r} cannot start: {error}\nFix its configuration, or train with --tracker none."
        ) from None
    started: Tracker = tracker
    return started
