"""Makes examples.json: PGD on the reference model, on a few test images, at radii up to twice its eps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Generator, Tensor, nn

from robust_export.attacks.pgd import pgd
from robust_export.bundle import Bundle
from robust_export.data.datasets import Images, load_dataset
from robust_export.errors import DataError, InvalidValue
from robust_export.nn.load import load
from robust_export.recipe.schema import MAX_EPS, STRICT, Count, Natural, Threat
from robust_export.runtimes.classifier import Pixels
from robust_export.serving.ui.examples_file import (
    KIND,
    NAME,
    SCHEMA,
    Bytes,
    Deltas,
    Floats,
    dequantize,
    encode,
    quantize,
    weights_digest,
)
from robust_export.utils.device import find_device
from robust_export.utils.files import to_json

RADII = tuple(i / 4 for i in range(1, 9))  # multiples of the threat's eps
MAX_BYTES = 4 << 20  # pixels and deltas of a file; large images are fewer
BATCH = 256  # images classified at a time in the search for correctly classified ones

Say = Callable[[str], None]


@validated_dataclass(frozen=True, config=STRICT)
class AttackOptions:
    """Number of images, and strength of the attack."""

    images: Annotated[int, Field(ge=1, le=100)] = 12
    steps: Count = 20  # of PGD at each radius, starting where the previous radius ended
    seed: Natural = 0


@dataclass(frozen=True)
class _Examples:
    """The strongest adversarial example of each image at one radius, as quantized in the file."""

    delta: Deltas  # [N, C, H, W]
    scale: Floats  # [N]
    decision: npt.NDArray[np.int64]  # [N]
    margin: Floats  # [N]


def make_examples(
    bundle: Bundle, options: AttackOptions | None = None, threat: Threat | None = None, *,
    data_dir: str | Path | None = None, device: str = "auto", say: Say = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Attack a few test images, write examples.json into the bundle, and return its content.

    The images are the first correctly classified ones of each class. PGD minimises the label's margin. It
    starts at a random point of the smallest ball, and at each further radius where the previous one ended. An
    example of a smaller radius is kept where it is stronger: the larger ball contains it.

    Raises:
        InvalidValue: if eps is 0.
        DataError: if the data set is missing, or no image is classified correctly.
    """
    options, threat = options or AttackOptions(), threat or bundle.threat
    if threat.eps == 0:
        raise InvalidValue("eps is 0, which allows no perturbation; give --eps")
    recipe = bundle.recipe()
    size, channels = recipe.model.image_size, recipe.model.in_chans
    split = load_dataset(recipe.data.name, "test", size, channels, data_dir or recipe.data.dir)
    model = load(bundle).to(find_device(device))
    fitting = MAX_BYTES // (channels * size * size * (len(RADII) + 1))
    rows = _correctly_classified(model, split, max(1, min(options.images, fitting)))
    say(f"pgd: attacking {len(rows)} images at {len(RADII)} radii up to {threat.norm} {2 * threat.eps:g}")
    content = _content(bundle, model, split, rows, options, threat)
    bundle.write({NAME: to_json(content)}, KIND)
    return content


def _content(
    bundle: Bundle, model: nn.Module, split: Images, rows: list[int], options: AttackOptions, threat: Threat
) -> dict[str, Any]:
    pixels, labels = split.batch(rows)
    clean = np.rint(pixels.numpy() * 255).astype(np.uint8)
    radii = [min(factor * threat.eps, MAX_EPS[threat.norm]) for factor in RADII]
    unperturbed = _evaluate(model, clean, np.zeros_like(clean, np.int8), np.ones(len(clean)), labels)
    attacks = _attack(model, clean, labels, unperturbed, radii, options, threat)
    images = [
        {
            "index": row, "label": int(labels[i]), "pixels": encode(clean[i]),
            "clean": _decision(unperturbed, i),
            "attacks": [
                {"scale": float(a.scale[i]), "delta": encode(a.delta[i]), **_decision(a, i)} for a in attacks
            ],
        }
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return {
        "schema": SCHEMA, "model": bundle.name, "weights_sha256": weights_digest(bundle),
        "dataset": split.name, "labels": bundle.labels, "plane": list(clean.shape[1:]),
        "threat": asdict(threat), "attack": {"name": "pgd", "steps": options.steps, "seed": options.seed},
        "radii": radii, "images": images,
    }  # fmt: skip


def _attack(
    model: nn.Module, clean: Bytes, labels: Tensor, unperturbed: _Examples, radii: list[float],
    options: AttackOptions, threat: Threat,
) -> list[_Examples]:  # fmt: skip
    """Return the strongest examples at each radius, evaluated after quantization."""
    device = next(model.parameters()).device
    pixels, targets = torch.from_numpy(clean).float().div(255).to(device), labels.to(device)
    generator = Generator().manual_seed(options.seed)
    adversarial, strongest, examples = None, unperturbed, []
    for radius in radii:
        adversarial = pgd(
            model, pixels, targets, Threat(threat.norm, radius), steps=options.steps,
            step_size=2.5 * radius / options.steps, start=adversarial, loss=_negative_margin,
            generator=generator if adversarial is None else None,
        )  # fmt: skip
        candidates = _evaluate(model, clean, *quantize(clean, adversarial.cpu().numpy()), labels)
        strongest = _stronger(strongest, candidates)
        examples.append(strongest)
    return examples


def _negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return sum_i (max_{j != y_i} logits_ij - logits_iy_i)."""
    label_logits = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (others.amax(1) - label_logits[:, 0]).sum()


def _stronger(first: _Examples, second: _Examples) -> _Examples:
    """Return for each image the example with the smaller margin."""
    chosen = second.margin <= first.margin
    return _Examples(
        np.where(chosen[:, None, None, None], second.delta, first.delta),
        *(
            np.where(chosen, getattr(second, key), getattr(first, key))
            for key in ("scale", "decision", "margin")
        ),
    )


def _evaluate(model: nn.Module, clean: Bytes, delta: Deltas, scale: Floats, labels: Tensor) -> _Examples:
    """Return the examples with the model's decisions and the labels' margins."""
    pixels: Pixels = dequantize(clean, delta, scale)
    logits = _logits(model, torch.from_numpy(pixels))
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, labels.numpy()] = -np.inf
    return _Examples(delta, scale, logits.argmax(1), logits[rows, labels.numpy()] - others.max(1))


def _decision(examples: _Examples, i: int) -> dict[str, Any]:
    return {"decision": int(examples.decision[i]), "margin": float(examples.margin[i])}


def _correctly_classified(model: nn.Module, split: Images, count: int) -> list[int]:
    """Return the rows of the first correctly classified images, spread evenly over the classes."""
    per_class = -(-count // len(split.classes))
    rows_by_class: dict[int, list[int]] = {}
    for start in range(0, len(split), BATCH):
        rows = range(start, min(start + BATCH, len(split)))
        pixels, labels = split.batch(rows)
        decisions = _logits(model, pixels).argmax(1)
        for row, label, decision in zip(rows, labels.tolist(), decisions, strict=True):
            if decision == label and len(rows_by_class.setdefault(label, [])) < count:
                rows_by_class[label].append(row)
        if sum(len(group[:per_class]) for group in rows_by_class.values()) >= count:
            break
    ordered = sorted(
        (position, label, row) for label, group in rows_by_class.items() for position, row in enumerate(group)
    )
    if not ordered:
        raise DataError(
            f"the network classifies no test image of {split.name} correctly; there is none to attack"
        )
    return [row for _, _, row in ordered[:count]]


def _logits(model: nn.Module, pixels: Tensor) -> Floats:
    """Return the logits, float64 [N, K]."""
    with torch.inference_mode():
        logits: Floats = model(pixels.to(next(model.parameters()).device)).cpu().double().numpy()
    return logits
