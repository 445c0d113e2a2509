"""What a trained bundle's manifest says of its network and of where that came from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_export.bundle import MANIFEST, Bundle
from robust_export.nn.build import find_sparta_file
from robust_export.recipe.schema import SpartaOptions
from robust_export.utils.files import sha256
from robust_export.utils.provenance import machine, now, versions

if TYPE_CHECKING:
    from robust_export.training.trainer import Run


def manifest(run: Run, name: str) -> dict[str, Any]:
    """Return the manifest of a run that is done, without its files."""
    spec, images = run.recipe.model, run.train_images
    plane = [spec.in_chans, spec.image_size, spec.image_size]
    return {
        "name": name, "created": now(), "model": spec.name, "labels": list(images.classes),
        "input": {"name": "pixels", "dtype": "float32", "shape": ["N", *plane]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["N", len(images.classes)]},
        "preprocessing": {
            "range": [0, 1], "channels": {1: "grey", 3: "RGB"}.get(spec.in_chans, "as trained"),
            "resize": "shorter side, bilinear, antialiased", "crop": "centre",
            "normalisation": "inside the model",
        },
        "threat": asdict(run.recipe.threat),
        "provenance": _provenance(run),
    }  # fmt: skip


def _provenance(run: Run) -> dict[str, Any]:
    best, images, extra = run.history[run.best_epoch - 1], run.train_images, run.feed.extra
    facts = {
        "recipe": "recipe.toml", "seed": run.recipe.train.seed,
        "data": {
            "name": images.name, "sha256": images.digest, "train": len(images), "val": len(run.val_images),
        },
        "best_epoch": run.best_epoch, "epochs": len(run.history),
        "val": {"clean_accuracy": best.clean_accuracy, "robust_accuracy": best.robust_accuracy},
        "versions": versions(), "machine": machine(run.device),
    }  # fmt: skip
    if extra is not None:
        ratio = run.feed.extra_per_batch / (run.feed.extra_per_batch + run.feed.own_per_batch)
        facts["extra_data"] = {
            "name": extra.name, "sha256": extra.digest, "images": len(extra), "ratio": ratio
        }  # fmt: skip
    if run.processes.several:
        facts["processes"] = run.processes.world
    if run.sparta_from:
        facts["sparta_from"] = run.sparta_from
    if run.stopped:
        facts["stopped"] = run.stopped
    return facts


def sparta_source(options: SpartaOptions) -> dict[str, Any]:
    """Return where a network's Sparta function comes from; nothing where it starts afresh.

    "sha256" is of the function's file, "frozen" whether it learns on, "gate" what was made of it. Of a
    bundle there are its name, model and data set as well.
    """
    if not options.load:
        return {}
    file = find_sparta_file(options.load)
    facts: dict[str, Any] = {"sha256": sha256(file), "frozen": options.freeze, "gate": options.gate}
    folder = Path(file).parent
    if (folder / MANIFEST).is_file():
        source = Bundle.open(folder)
        data = source.manifest["provenance"]["data"]
        facts |= {"bundle": source.name, "model": source.manifest["model"], "data": data}
    return facts
