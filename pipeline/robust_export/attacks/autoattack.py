"""AutoAttack (Croce & Hein, arXiv 2003.01690), run by the package `pyautoattack`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.checks import check_square_sr
from torch import Tensor, nn

from robust_export.recipe.schema import AttackName, Threat, Verify
from robust_export.utils.work_items import Arrays, WorkItems, to_array, to_lines

LOGGER = "auto-attack"  # name of the package's logger


@dataclass(frozen=True)
class AttackResult:
    """Result of AutoAttack.

    Attributes:
        adversarial: [N, C, H, W], the example that broke an image, or the image itself where no attack did.
        broken_by: name of the first attack that broke each image; "" for robust images, "clean" for those
            that are misclassified without an attack.
        accuracy: robust accuracy after each attack, cumulative, in the order in which they ran.
        flags: AutoAttack's warnings, and attacks that cannot run on this model, without duplicates.
    """

    adversarial: Tensor
    broken_by: list[str]
    accuracy: dict[str, float]
    flags: list[str]


def autoattack(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
    settings: Verify,
    on_attack: Callable[[str, int], None] = lambda name, images: None,
    work_items: WorkItems | None = None,
) -> AttackResult:
    """Run the attacks of `settings` in order, each on the images that no attack has broken yet.

    Args:
        model: pixels to logits, in eval mode, on the device of `pixels`.
        on_attack: called before each attack with its name and its number of images.
        work_items: runs the batches; by default in this process, without storing results.
    """
    work_items = work_items or WorkItems()
    result = pixels.clone()
    robust = _predict(model, pixels, settings.batch_size) == labels
    broken_by = ["" if correct else "clean" for correct in robust.tolist()]
    accuracy: dict[str, float] = {}
    with _captured_warnings() as flags:
        classes = model(pixels[:1]).shape[1]
        for name in _applicable(settings.attacks, classes, threat, pixels.shape[-1], flags):
            rows = robust.nonzero().flatten()
            if len(rows):
                on_attack(name, len(rows))
                adversarial, warnings = _run_in_batches(
                    work_items, model, name, pixels[rows], labels[rows], threat, settings, classes
                )
                flags += warnings
                check_budget(adversarial, pixels[rows], threat)
                broken = _predict(model, adversarial, settings.batch_size) != labels[rows]
                result[rows[broken]] = adversarial[broken]
                robust[rows[broken]] = False
                for index in rows[broken].tolist():
                    broken_by[index] = name
            accuracy[name] = int(robust.sum()) / len(labels)
        # The package compares the attacks of one run; here each attack is a run of its own.
        clean = 1 - broken_by.count("clean") / len(labels)
        check_square_sr({"clean": clean, **accuracy}, logger=logging.getLogger(LOGGER))
    return AttackResult(result, broken_by, accuracy, list(dict.fromkeys(flags)))


def _run_in_batches(
    work_items: WorkItems, model: nn.Module, name: AttackName, pixels: Tensor, labels: Tensor, threat: Threat,
    settings: Verify, classes: int,
) -> tuple[Tensor, list[str]]:  # fmt: skip
    """Run one attack, one batch per work item; return its examples and the package's warnings."""
    batches = list(zip(pixels.split(settings.batch_size), labels.split(settings.batch_size), strict=True))

    def attack(i: int) -> Arrays:
        with _captured_warnings() as warnings:
            examples = _run(model, name, *batches[i], threat, settings, classes)
        return {"adversarial": examples.cpu().numpy(), "flags": to_array(warnings)}

    inputs = [tensor.cpu().numpy().tobytes() for tensor in (pixels, labels)]
    results = work_items.run(f"autoattack.{name}", attack, len(batches), depends_on=inputs)
    adversarial = np.concatenate([result["adversarial"] for result in results])
    warnings = [line for result in results for line in to_lines(result["flags"])]
    return torch.from_numpy(adversarial).to(pixels.device), warnings


def _run(
    model: nn.Module, name: str, pixels: Tensor, labels: Tensor, threat: Threat, settings: Verify,
    classes: int,
) -> Tensor:  # fmt: skip
    """Run one attack of the package with the budget of `settings`."""
    device = pixels.device
    attack = AutoAttack(
        model, attacks=[name], version="custom", norm=threat.norm, eps=threat.eps,
        seed=settings.seed, device=device,
    )  # fmt: skip
    common = {
        "n_iter": settings.iterations, "norm": threat.norm, "eps": threat.eps,
        "seed": settings.seed, "device": device, "logger": attack.logger,
    }  # fmt: skip
    targets = min(settings.targets, classes - 1)
    attack.apgd = APGDAttack(model, n_restarts=1, **common)
    attack.apgd_targeted = APGDAttack_targeted(model, n_restarts=1, n_target_classes=targets, **common)
    attack.fab.n_iter, attack.fab.n_restarts = settings.iterations, 1
    attack.fab.n_target_classes = targets
    attack.square.n_queries = settings.queries
    with isolated_rng(device):
        examples, _ = attack.run_standard_evaluation(pixels, labels, batch_size=settings.batch_size)
    adversarial: Tensor = examples.detach()
    return adversarial


def _applicable(
    attacks: Sequence[AttackName], classes: int, threat: Threat, size: int, flags: list[str]
) -> list[AttackName]:
    """Return the attacks that can run on such a model; add the reason for each other one to `flags`."""
    reasons = {}
    for name, min_classes in {"apgd-dlr": 3, "apgd-t": 4}.items():
        if classes < min_classes:
            reasons[name] = f"its loss needs {min_classes} classes, the model has {classes}"
    if threat.norm == "L2" and size < 5:
        reasons["square"] = f"under L2 it needs images of at least 5 pixels, these have {size}"
    flags += [f"{name} not run: {reasons[name]}" for name in attacks if name in reasons]
    return [name for name in attacks if name not in reasons]


def check_budget(adversarial: Tensor, pixels: Tensor, threat: Threat) -> None:
    """Raise RuntimeError if an example lies outside the threat's ball around its image or outside [0, 1]."""
    delta = (adversarial - pixels).flatten(1)
    size = delta.abs().amax(1) if threat.norm == "Linf" else torch.linalg.vector_norm(delta, dim=1)
    if size.max() > threat.eps * (1 + 1e-5) + 1e-6 or adversarial.min() < 0 or adversarial.max() > 1:
        raise RuntimeError(
            f"an attack exceeded its budget: {threat.norm} norm {size.max():g}, limit {threat.eps:g}; pixels "
            f"{adversarial.min():g} to {adversarial.max():g}, limits 0 and 1"
        )


def isolated_rng(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's global random state on exit: the package seeds it."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _predict(model: nn.Module, pixels: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(chunk).argmax(1) for chunk in pixels.split(batch_size)])


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Collect the package's warnings in a list instead of printing them."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger(LOGGER), Collect(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
