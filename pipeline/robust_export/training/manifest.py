"""The manifest of a trained bundle: its model, training result and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robust_export.bundle import MANIFEST, Bundle
from robust_export.data.datasets import Images
from robust_export.data.feed import Feed
from robust_export.recipe.schema import Recipe, SpartaOptions
from robust_export.training.distributed import Processes
from robust_export.training.progress import Epoch
from robust_export.utils.files import sha256
from robust_export.utils.provenance import machine, now, versions


@dataclass(frozen=True)
class TrainingResult:
    """A finished training run, as the manifest describes it.

    Attributes:
        best_epoch: number of the epoch whose weights were kept, from 1.
        stopped: why it ended before the last epoch, other than by patience; "" if it did not.
        sparta_origin: what `sparta_origin` returned, {} if no Sparta function was loaded.
    """

    recipe: Recipe
    feed: Feed
    val_images: Images
    history: Sequence[Epoch]
    best_epoch: int
    stopped: str
    sparta_origin: dict[str, Any]
    processes: Processes


def manifest(result: TrainingResult, name: str) -> dict[str, Any]:
    """Return the manifest of the bundle `name`, without its files."""
    spec, images = result.recipe.model, result.feed.images
    image_shape = [spec.in_chans, spec.image_size, spec.image_size]
    return {
        "name": name, "created": now(), "model": spec.name, "labels": list(images.classes),
        "input": {"name": "pixels", "dtype": "float32", "shape": ["N", *image_shape]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["N", len(images.classes)]},
        "preprocessing": {
            "range": [0, 1], "channels": {1: "grey", 3: "RGB"}.get(spec.in_chans, "as trained"),
            "resize": "shorter side, bilinear, antialiased", "crop": "centre",
            "normalisation": "inside the model",
        },
        "threat": asdict(result.recipe.threat),
        "provenance": _provenance(result),
    }  # fmt: skip


def _provenance(result: TrainingResult) -> dict[str, Any]:
    feed, processes = result.feed, result.processes
    images, extra, best = feed.images, feed.extra, result.history[result.best_epoch - 1]
    facts = {
        "recipe": "recipe.toml", "seed": result.recipe.train.seed,
        "data": {
            "name": images.name, "sha256": images.digest, "train": len(images), "val": len(result.val_images),
        },
        "best_epoch": result.best_epoch, "epochs": len(result.history),
        "val": {"clean_accuracy": best.clean_accuracy, "robust_accuracy": best.robust_accuracy},
        "versions": versions(), "machine": machine(processes.device),
    }  # fmt: skip
    if extra is not None:
        ratio = feed.extra_per_batch / (feed.extra_per_batch + feed.own_per_batch)
        facts["extra_data"] = {
            "name": extra.name, "sha256": extra.digest, "images": len(extra), "ratio": ratio
        }  # fmt: skip
    if processes.distributed:
        facts["processes"] = processes.world
    if result.sparta_origin:
        facts["sparta_from"] = result.sparta_origin
    if result.stopped:
        facts["stopped"] = result.stopped
    return facts


def sparta_origin(file: Path, options: SpartaOptions) -> dict[str, Any]:
    """Return the origin of the Sparta function that was loaded from `file`.

    Keys: "sha256" of its file, "frozen" (whether it is not trained) and "gate" (the option of the same name);
    and "bundle", "model" and "data" if it comes from a bundle.
    """
    facts: dict[str, Any] = {"frozen": options.freeze, "gate": options.gate}
    if not (file.parent / MANIFEST).is_file():
        return {"sha256": sha256(file), **facts}
    source = Bundle.containing(file)
    origin = {
        "bundle": source.name, "model": source.manifest["model"],
        "data": source.manifest["provenance"]["data"],
    }  # fmt: skip
    return {"sha256": source.digest(file), **facts, **origin}
