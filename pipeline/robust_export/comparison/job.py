"""One run of a comparison: train, then AutoAttack on the test split; here, or in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robust_export.attacks.autoattack import autoattack
from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.errors import RobustExportError
from robust_export.nn.load import load
from robust_export.recipe.recipe_file import parse, to_tables
from robust_export.training.checkpoint import FOLDER
from robust_export.training.run import train
from robust_export.utils.device import find_device
from robust_export.utils.files import write_json
from robust_export.utils.stop import StopRequest
from robust_export.utils.work_items import WorkItems


@dataclass(frozen=True)
class Job:
    """A network to train in a folder; the result of its attacks goes to `<folder>.json`.

    Attributes:
        attack: whether its robust accuracy is wanted; a source of gates is only trained.
    """

    folder: Path
    recipe: dict[str, dict[str, Any]]
    device: str = "auto"
    attack: bool = True

    @property
    def result_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    def result(self) -> dict[str, Any] | None:
        """Return what was measured already, None where that is not finished or of another recipe."""
        try:
            found: dict[str, Any] = json.loads(self.result_file.read_text("utf-8"))
            theirs = parse(found["recipe"], str(self.result_file))  # of an earlier release: with less in it
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RobustExportError):
            return None
        return found if theirs == parse(self.recipe, str(self.folder)) else None


def work(
    job: Job, stop: StopRequest | None = None, on_step: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train and attack, going on where it was interrupted; return and keep the result.

    "robust_accuracy" is from AutoAttack with the recipe's [verify] budgets on its test images, never from the
    attack that training uses. On the CPU it computes with one thread, so that the result does not depend on
    how many runs go on beside it.
    """
    if (known := job.result()) is not None:
        return known
    started = time.monotonic()
    with one_thread():
        bundle = train(
            parse(job.recipe, str(job.folder)), job.folder, resume=True, device=job.device, stop=stop,
            on_step=lambda *_: on_step(),
        )  # fmt: skip
        facts = bundle.manifest["provenance"]
        result: dict[str, Any] = {
            "recipe": to_tables(bundle.recipe()), "seed": facts["seed"], "val": facts["val"],
            "best_epoch": facts["best_epoch"], "stopped": facts.get("stopped"),
            "sparta_from": facts.get("sparta_from"), "data": facts["data"],
            "weights_sha256": bundle.manifest["files"]["weights.safetensors"]["sha256"],
        }  # fmt: skip
        if job.attack:
            result |= _attack(bundle, job)
    result["seconds"] = round(time.monotonic() - started, 1)
    write_json(job.result_file, result)
    shutil.rmtree(job.folder / FOLDER, ignore_errors=True)  # of training: what is finished needs it no more
    return result


def _attack(bundle: Bundle, job: Job) -> dict[str, Any]:
    recipe, device = bundle.recipe(), find_device(job.device)
    spec, settings = recipe.model, recipe.verify
    images = load_dataset(recipe.data.name, "test", spec.image_size, spec.in_chans, recipe.data.dir)
    pixels, labels = images.batch(range(min(settings.samples or len(images), len(images))))
    weights = bundle.manifest["files"]["weights.safetensors"]["sha256"]
    units = WorkItems(bundle.path / "checkpoints" / f"compare-{weights[:16]}")
    found = autoattack(
        load(bundle).to(device).requires_grad_(False), pixels.to(device), labels.to(device),
        bundle.threat, settings, work_items=units,
    )  # fmt: skip
    broken = Counter(found.broken_by)
    n = len(labels)
    return {
        "samples": n, "clean_accuracy": 1 - broken["clean"] / n, "robust_accuracy": broken[""] / n,
        "attacks": found.accuracy, "flags": found.flags,
    }  # fmt: skip


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread within."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(job_file: str) -> int:
    """Run the job of a file; a signal lets the step finish and saves the state."""
    stop, parent = StopRequest(), os.getppid()

    def watch_parent() -> None:
        """StopRequest where the process that started this one is gone: another may start the same run."""
        if os.getppid() != parent:
            stop.requested = True

    def ask(*_: object) -> None:
        if stop.requested or not stop.observed:
            raise KeyboardInterrupt
        stop.requested = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    job = json.loads(Path(job_file).read_text("utf-8"))
    try:
        work(Job(Path(job["folder"]), job["recipe"], job["device"], job["attack"]), stop, watch_parent)
    except RobustExportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    return 0
