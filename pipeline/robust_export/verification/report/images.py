"""Images in the page: PNG inside the address, so that the page needs no other file."""

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

MOST = 12  # examples that are shown
EXACT = 64  # an image of at most this side is shown pixel by pixel; a larger one is reduced to it
FACTORS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))  # of amplification


@dataclass(frozen=True)
class Decision:
    """What some classifiers, who all decide alike, make of an example."""

    who: list[str]  # "source", or letters
    clean: str
    clean_right: bool
    adversarial: str
    adversarial_right: bool


@dataclass(frozen=True)
class Shown:
    """An example as the page shows it; the images are data URIs."""

    label: str
    attack: str
    clean: str
    adversarial: str
    difference: str
    largest: float  # change of a pixel, in [0, 1]
    decisions: list[Decision]


def shown(
    examples: Sequence[Example], labels: Sequence[str], entries: Sequence[Entry]
) -> tuple[list[Shown], int]:
    """Return the examples, at most MOST of them, and the factor by which all differences are amplified."""
    chosen = examples[:MOST]
    changes = [float(np.abs(e.adversarial - e.clean).max(initial=0)) for e in chosen]
    factor = amplification(max(changes, default=0))
    letters = {entry.title: entry.letter for entry in entries}
    rows = [
        Shown(
            name(labels, e.label), e.attack, data_uri(e.clean), data_uri(e.adversarial),
            data_uri(0.5 + factor * (e.adversarial - e.clean)), change, _decisions(e, labels, letters),
        )
        for e, change in zip(chosen, changes, strict=True)
    ]  # fmt: skip
    return rows, factor


def amplification(largest: float) -> int:
    """Return the largest round factor at which no difference leaves [-0.5, 0.5]."""
    return max((f for f in FACTORS if f * largest <= 0.5), default=1) if largest > 0 else 1


def name(labels: Sequence[str], index: int) -> str:
    """Return the name of a class, or its number where it has none."""
    return labels[index] if 0 <= index < len(labels) and labels[index] else f"class {index}"


def data_uri(pixels: Pixels) -> str:
    """Return an image [C, H, W] of [0, 1] as a PNG: in colour if it has 3 channels, else their mean."""
    planes = pixels if len(pixels) == 3 else pixels.mean(axis=0, keepdims=True)
    levels = np.clip(np.round(np.nan_to_num(planes) * 255), 0, 255).astype(np.uint8)
    image = Image.fromarray(levels.transpose(1, 2, 0) if len(levels) == 3 else levels[0])
    if max(image.size) > EXACT:
        scale = EXACT / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _decisions(example: Example, labels: Sequence[str], letters: dict[str, str]) -> list[Decision]:
    """Return the decisions, those who decide alike together, in the order in which they come."""
    groups: dict[tuple[int, int], list[str]] = {}
    for who, decided in example.decisions.items():
        groups.setdefault(decided, []).append(letters.get(who, who))
    return [
        Decision(
            who, name(labels, clean), clean == example.label,
            name(labels, adversarial), adversarial == example.label,
        )
        for (clean, adversarial), who in groups.items()
    ]  # fmt: skip
