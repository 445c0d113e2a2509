"""Example images of report.html as PNG data URIs, with the predictions of all classifiers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from robust_export.runtimes.classifier import Pixels
from robust_export.verification.report.entries import Entry
from robust_export.verification.results import Example

MAX_EXAMPLES = 12
MAX_SIDE = 64  # pixels; larger images are reduced to it
AMPLIFICATIONS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))


@dataclass(frozen=True)
class Prediction:
    """The classes that several classifiers with equal predictions give to an example."""

    classifiers: list[str]  # "reference", or letters of artifacts
    clean: str
    clean_correct: bool
    adversarial: str
    adversarial_correct: bool


@dataclass(frozen=True)
class ShownExample:
    """An example as the page shows it.

    Attributes:
        clean, adversarial, difference: data URIs.
        largest: largest change of a pixel, in [0, 1].
    """

    label: str
    attack: str
    clean: str
    adversarial: str
    difference: str
    largest: float
    predictions: list[Prediction]


def prepare(
    examples: Sequence[Example], labels: Sequence[str], entries: Sequence[Entry]
) -> tuple[list[ShownExample], int]:
    """Return up to MAX_EXAMPLES examples, and the factor by which all differences are amplified."""
    chosen = examples[:MAX_EXAMPLES]
    changes = [float(np.abs(e.adversarial - e.clean).max(initial=0)) for e in chosen]
    factor = amplification(max(changes, default=0))
    letters = {entry.title: entry.letter for entry in entries}
    rows = [
        ShownExample(
            class_name(labels, e.label), e.attack, data_uri(e.clean), data_uri(e.adversarial),
            data_uri(0.5 + factor * (e.adversarial - e.clean)), change, _predictions(e, labels, letters),
        )
        for e, change in zip(chosen, changes, strict=True)
    ]  # fmt: skip
    return rows, factor


def amplification(largest: float) -> int:
    """Return the largest round factor at which no difference leaves [-0.5, 0.5]."""
    return max((f for f in AMPLIFICATIONS if f * largest <= 0.5), default=1) if largest > 0 else 1


def class_name(labels: Sequence[str], index: int) -> str:
    """Return the name of a class, or "class N" if it has none."""
    return labels[index] if 0 <= index < len(labels) and labels[index] else f"class {index}"


def data_uri(pixels: Pixels) -> str:
    """Return an image [C, H, W] in [0, 1] as a PNG: in colour if C is 3, else the mean of the channels."""
    channels = pixels if len(pixels) == 3 else pixels.mean(axis=0, keepdims=True)
    levels = np.clip(np.round(np.nan_to_num(channels) * 255), 0, 255).astype(np.uint8)
    image = Image.fromarray(levels.transpose(1, 2, 0) if len(levels) == 3 else levels[0])
    if max(image.size) > MAX_SIDE:
        scale = MAX_SIDE / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _predictions(example: Example, labels: Sequence[str], letters: dict[str, str]) -> list[Prediction]:
    """Return the predictions, with equal ones joined, in the order of their first classifier."""
    groups: dict[tuple[int, int], list[str]] = {}
    for title, predicted in example.predictions.items():
        groups.setdefault(predicted, []).append(letters.get(title, title))
    return [
        Prediction(
            classifiers, class_name(labels, clean), clean == example.label,
            class_name(labels, adversarial), adversarial == example.label,
        )
        for (clean, adversarial), classifiers in groups.items()
    ]  # fmt: skip
