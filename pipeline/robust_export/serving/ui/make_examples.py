"""Makes examples.json: PGD on the bundle's network, on a few test images, at radii up to twice its eps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked
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
    encode,
    quantise,
    restore,
    weights_digest,
)
from robust_export.utils.device import find_device
from robust_export.utils.files import to_json

PARTS = tuple(i / 4 for i in range(1, 9))  # radii, in units of the threat's eps
ROOM = 4 << 20  # bytes of pixels and deltas in a file: large images are fewer
BATCH = 256  # images that are looked at together for ones that are read right

Say = Callable[[str], None]


@checked(frozen=True, config=STRICT)
class Wanted:
    """How many images, and how hard they are attacked."""

    images: Annotated[int, Field(ge=1, le=100)] = 12
    steps: Count = 20  # of PGD at each radius, from where the radius before ended
    seed: Natural = 0


@dataclass(frozen=True)
class _Attacked:
    """The strongest example of each image at a radius, as the file has it."""

    delta: Deltas  # [N, C, H, W]
    unit: Floats  # [N]
    decision: npt.NDArray[np.int64]  # [N]
    margin: Floats  # [N]


def make_examples(
    bundle: Bundle, wanted: Wanted | None = None, threat: Threat | None = None, *,
    data_dir: str | Path | None = None, device: str = "auto", say: Say = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Attack a few test images, write examples.json into the bundle, and return what it holds.

    The images are the first of each class that the network reads right. PGD lowers the label's margin; it
    starts at a random point, at every further radius where the one before ended. Where an example of a
    smaller radius misleads more, it is kept: the larger ball holds it too.

    Raises:
        InvalidValue: for an eps of 0, which leaves nothing to attack with.
        DataError: if the data set cannot be had, or no image is read right.
    """
    wanted, threat = wanted or Wanted(), threat or bundle.threat
    if threat.eps == 0:
        raise InvalidValue("eps is 0, so there is nothing to attack with; give --eps")
    recipe = bundle.recipe()
    size, channels = recipe.model.image_size, recipe.model.in_chans
    split = load_dataset(recipe.data.name, "test", size, channels, data_dir or recipe.data.dir)
    source = load(bundle).to(find_device(device))
    most = max(1, min(wanted.images, ROOM // (channels * size * size * (len(PARTS) + 1))))
    rows = _read_right(source, split, most)
    say(f"pgd: attacking {len(rows)} images at {len(PARTS)} radii up to {threat.norm} {2 * threat.eps:g}")
    found = _content(bundle, source, split, rows, wanted, threat)
    bundle.write({NAME: to_json(found)}, KIND)
    return found


def _content(
    bundle: Bundle, source: nn.Module, split: Images, rows: list[int], wanted: Wanted, threat: Threat
) -> dict[str, Any]:
    pixels, labels = split.batch(rows)
    clean = np.rint(pixels.numpy() * 255).astype(np.uint8)
    radii = [min(part * threat.eps, MAX_EPS[threat.norm]) for part in PARTS]
    zero = np.zeros_like(clean, np.int8), np.ones(len(clean))
    start = _Attacked(*zero, *_judged(source, restore(clean, *zero), labels))
    attacked = _attack(source, clean, labels, start, radii, wanted, threat)
    images = [
        {
            "index": row, "label": int(labels[i]), "pixels": encode(clean[i]), "clean": _said(start, i),
            "attacks": [
                {"scale": float(a.unit[i]), "delta": encode(a.delta[i]), **_said(a, i)}
                for a in attacked
            ],
        }
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return {
        "schema": SCHEMA, "model": bundle.name, "weights_sha256": weights_digest(bundle),
        "dataset": split.name, "labels": bundle.labels, "plane": list(clean.shape[1:]),
        "threat": asdict(threat), "attack": {"name": "pgd", "steps": wanted.steps, "seed": wanted.seed},
        "radii": radii, "images": images,
    }  # fmt: skip


def _attack(
    source: nn.Module, clean: Bytes, labels: Tensor, start: _Attacked, radii: list[float], wanted: Wanted,
    threat: Threat,
) -> list[_Attacked]:  # fmt: skip
    """Return the strongest examples at each radius, as they are after rounding."""
    device = next(source.parameters()).device
    pixels, truth = torch.from_numpy(clean).float().div(255).to(device), labels.to(device)
    generator = Generator().manual_seed(wanted.seed)
    moved, best, found = None, start, []
    for radius in radii:
        moved = pgd(
            source, pixels, truth, Threat(threat.norm, radius), steps=wanted.steps,
            step_size=2.5 * radius / wanted.steps, start=moved, loss=_lost_margin,
            generator=generator if moved is None else None,
        )  # fmt: skip
        delta, unit = quantise(clean, moved.cpu().numpy())
        best = _stronger(best, _Attacked(delta, unit, *_judged(source, restore(clean, delta, unit), labels)))
        found.append(best)
    return found


def _lost_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the largest other logit less the label's."""
    mine = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (others.amax(1) - mine[:, 0]).sum()


def _stronger(one: _Attacked, other: _Attacked) -> _Attacked:
    """Return, image by image, the example with the smaller margin."""
    chosen = other.margin <= one.margin
    return _Attacked(
        np.where(chosen[:, None, None, None], other.delta, one.delta),
        *(np.where(chosen, getattr(other, key), getattr(one, key)) for key in ("unit", "decision", "margin")),
    )


def _judged(source: nn.Module, pixels: Pixels, labels: Tensor) -> tuple[Any, Any]:
    """Return decisions [N], and margins [N] of the labels."""
    logits = _logits(source, torch.from_numpy(pixels))
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, labels.numpy()] = -np.inf
    return logits.argmax(1), logits[rows, labels.numpy()] - others.max(1)


def _said(found: _Attacked, i: int) -> dict[str, Any]:
    return {"decision": int(found.decision[i]), "margin": float(found.margin[i])}


def _read_right(source: nn.Module, split: Images, most: int) -> list[int]:
    """Return the first images that are read right, so many, from as many classes as there are."""
    per_class = -(-most // len(split.classes))
    found: dict[int, list[int]] = {}
    for start in range(0, len(split), BATCH):
        rows = range(start, min(start + BATCH, len(split)))
        pixels, labels = split.batch(rows)
        for row, label, decision in zip(
            rows, labels.tolist(), _logits(source, pixels).argmax(1), strict=True
        ):
            if decision == label and len(found.setdefault(label, [])) < most:
                found[label].append(row)
        if sum(len(mine[:per_class]) for mine in found.values()) >= most:
            break
    turns = sorted((place, label, row) for label, mine in found.items() for place, row in enumerate(mine))
    if not turns:
        raise DataError(f"the network reads no test image of {split.name} right, so none can be attacked")
    return [row for _, _, row in turns[:most]]


def _logits(source: nn.Module, pixels: Tensor) -> Floats:
    """Return the network's logits, [N, K]."""
    with torch.inference_mode():
        logits: Floats = source(pixels.to(next(source.parameters()).device)).cpu().double().numpy()
    return logits
