"""AutoAttack (Croce & Hein, arXiv 2003.01690), run by the package `pyautoattack`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.checks import check_square_sr
from torch import Tensor, nn

from robust_export.recipe.schema import AttackName, Threat, Verify
from robust_export.utils.work_items import Arrays, WorkItems, to_array, to_lines

LOGGER = "auto-attack"  # the package's own


@dataclass(frozen=True)
class AttackResult:
    """What AutoAttack found.

    Attributes:
        adversarial: [N, C, H, W], the example that broke an image, the image itself elsewhere.
        broken_by: the first attack that broke each image, "" for those that stand; "clean" for
            those that the model gets wrong without any attack.
        accuracy: robust accuracy after each attack, cumulative, in the order they ran.
        flags: AutoAttack's own warnings, and attacks that could not run, each once.
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
    units: WorkItems | None = None,
) -> AttackResult:
    """Run the attacks of `settings` one after another, each on the images that still stand.

    Args:
        model: pixels to logits, in eval mode, on the device of `pixels`.
        on_attack: is told each attack's name and how many images it is given.
        units: does the batches; here and now by default.
    """
    units = units or WorkItems()
    result = pixels.clone()
    stands = _predict(model, pixels, settings.batch_size) == labels
    broken_by = ["" if ok else "clean" for ok in stands.tolist()]
    accuracy: dict[str, float] = {}
    with _warnings() as flags:
        classes = model(pixels[:1]).shape[1]
        for name in _possible(settings.attacks, classes, threat, pixels.shape[-1], flags):
            rest = stands.nonzero().flatten()
            if len(rest):
                on_attack(name, len(rest))
                found, said = _in_batches(
                    units, model, name, pixels[rest], labels[rest], threat, settings, classes
                )
                flags += said
                check_budget(found, pixels[rest], threat)
                fell = _predict(model, found, settings.batch_size) != labels[rest]
                result[rest[fell]] = found[fell]
                stands[rest[fell]] = False
                for index in rest[fell].tolist():
                    broken_by[index] = name
            accuracy[name] = int(stands.sum()) / len(labels)
        # The package compares the attacks of one run; here each has a run of its own.
        clean = 1 - broken_by.count("clean") / len(labels)
        check_square_sr({"clean": clean, **accuracy}, logger=logging.getLogger(LOGGER))
    return AttackResult(result, broken_by, accuracy, list(dict.fromkeys(flags)))


def _in_batches(
    units: WorkItems, model: nn.Module, name: AttackName, pixels: Tensor, labels: Tensor, threat: Threat,
    settings: Verify, classes: int,
) -> tuple[Tensor, list[str]]:  # fmt: skip
    """Run one attack, a batch a unit; return its examples and the package's warnings."""
    batches = list(zip(pixels.split(settings.batch_size), labels.split(settings.batch_size), strict=True))

    def attack(i: int) -> Arrays:
        with _warnings() as said:
            examples = _run(model, name, *batches[i], threat, settings, classes)
        return {"adversarial": examples.cpu().numpy(), "flags": to_array(said)}

    given = [tensor.cpu().numpy().tobytes() for tensor in (pixels, labels)]
    results = units.run(f"autoattack.{name}", attack, len(batches), given=given)
    found = np.concatenate([result["adversarial"] for result in results])
    flags = [line for result in results for line in to_lines(result["flags"])]
    return torch.from_numpy(found).to(pixels.device), flags


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
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        found, _ = attack.run_standard_evaluation(pixels, labels, batch_size=settings.batch_size)
    adversarial: Tensor = found.detach()
    return adversarial


def _possible(
    attacks: Sequence[AttackName], classes: int, threat: Threat, size: int, flags: list[str]
) -> list[AttackName]:
    """Leave out the attacks that cannot run on such a model, and say so."""
    reasons = {}
    for name, needed in {"apgd-dlr": 3, "apgd-t": 4}.items():
        if classes < needed:
            reasons[name] = f"its loss needs {needed} classes, there are {classes}"
    if threat.norm == "L2" and size < 5:
        reasons["square"] = f"under L2 it needs images of 5 pixels or more, these have {size}"
    flags += [f"{name} not run: {reasons[name]}" for name in attacks if name in reasons]
    return [name for name in attacks if name not in reasons]


def check_budget(found: Tensor, pixels: Tensor, threat: Threat) -> None:
    """Raise RuntimeError if an attack left its ball or [0, 1]: its examples would count for nothing."""
    delta = (found - pixels).flatten(1)
    size = delta.abs().amax(1) if threat.norm == "Linf" else torch.linalg.vector_norm(delta, dim=1)
    if size.max() > threat.eps * (1 + 1e-5) + 1e-6 or found.min() < 0 or found.max() > 1:
        raise RuntimeError(f"an attack left its budget: {threat.norm} {size.max():g} > {threat.eps:g}")


def _predict(model: nn.Module, pixels: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(chunk).argmax(1) for chunk in pixels.split(batch_size)])


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the package's warnings instead of printing them."""
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
