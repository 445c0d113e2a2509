"""One job of a comparison: train a network, then attack it with AutoAttack on the test split."""

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
    """A network to train in a folder. Its result is written to `<folder>.json`.

    Attributes:
        attack: whether to measure its robust accuracy; the source of a transfer is only trained.
    """

    folder: Path
    recipe: dict[str, dict[str, Any]]
    device: str = "auto"
    attack: bool = True

    @property
    def result_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    def stored_result(self) -> dict[str, Any] | None:
        """Return the stored result; None if there is none, or if it is of another recipe."""
        try:
            result: dict[str, Any] = json.loads(self.result_file.read_text("utf-8"))
            # parsed, because a recipe that an earlier release stored lacks newer settings
            recipe = parse(result["recipe"], str(self.result_file))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RobustExportError):
            return None
        return result if recipe == parse(self.recipe, str(self.folder)) else None


def run_job(
    job: Job, stop: StopRequest | None = None, on_step: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train and attack, resuming an interrupted job; store and return the result.

    "robust_accuracy" is measured by AutoAttack with the recipe's [verify] budgets, not by the attack that
    training uses. On the CPU the job uses one thread, so that its result does not depend on the number of
    jobs that run at the same time.
    """
    if (stored := job.stored_result()) is not None:
        return stored
    started = time.monotonic()
    with one_thread():
        bundle = train(
            parse(job.recipe, str(job.folder)), job.folder, resume=True, device=job.device, stop=stop,
            on_step=lambda *_: on_step(),
        )  # fmt: skip
        provenance = bundle.manifest["provenance"]
        result: dict[str, Any] = {
            "recipe": to_tables(bundle.recipe()), "seed": provenance["seed"], "val": provenance["val"],
            "best_epoch": provenance["best_epoch"], "stopped": provenance.get("stopped"),
            "sparta_from": provenance.get("sparta_from"), "data": provenance["data"],
            "weights_sha256": bundle.manifest["files"]["weights.safetensors"]["sha256"],
        }  # fmt: skip
        if job.attack:
            result |= _attack(bundle, job)
    result["seconds"] = round(time.monotonic() - started, 1)
    write_json(job.result_file, result)
    shutil.rmtree(job.folder / FOLDER, ignore_errors=True)  # only needed to resume
    return result


def _attack(bundle: Bundle, job: Job) -> dict[str, Any]:
    recipe, device = bundle.recipe(), find_device(job.device)
    spec, settings = recipe.model, recipe.verify
    images = load_dataset(recipe.data.name, "test", spec.image_size, spec.in_chans, recipe.data.dir)
    pixels, labels = images.batch(range(min(settings.samples or len(images), len(images))))
    weights = bundle.manifest["files"]["weights.safetensors"]["sha256"]
    work_items = WorkItems(bundle.path / "checkpoints" / f"compare-{weights[:16]}")
    attacked = autoattack(
        load(bundle).to(device).requires_grad_(False), pixels.to(device), labels.to(device),
        bundle.threat, settings, work_items=work_items,
    )  # fmt: skip
    broken_by = Counter(attacked.broken_by)
    n = len(labels)
    return {
        "samples": n, "clean_accuracy": 1 - broken_by["clean"] / n, "robust_accuracy": broken_by[""] / n,
        "attacks": attacked.accuracy, "flags": attacked.flags,
    }  # fmt: skip


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread for torch within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(job_file: str) -> int:
    """Run the job that a JSON file describes; return the exit code.

    SIGTERM and SIGINT, and the end of the parent process, stop the training after the current step and save
    its state. Without a parent, another comparison may start the same job.
    """
    stop, parent = StopRequest(), os.getppid()

    def stop_without_parent() -> None:
        if os.getppid() != parent:
            stop.requested = True

    def handle_signal(*_: object) -> None:
        if stop.requested or not stop.observed:
            raise KeyboardInterrupt
        stop.requested = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle_signal)
    table = json.loads(Path(job_file).read_text("utf-8"))
    try:
        job = Job(Path(table["folder"]), table["recipe"], table["device"], table["attack"])
        run_job(job, stop, stop_without_parent)
    except RobustExportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    return 0
