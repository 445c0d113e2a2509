"""The training images that an int8 file's ranges are measured on: as they are, or attacked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robust_export.attacks.pgd import pgd
from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.errors import DataError, InvalidValue, unknown

KINDS = ("clean", "adversarial", "both")
BATCH = 256  # images that are attacked at once


@dataclass(frozen=True)
class Calibration:
    """What to measure ranges on."""

    images: str = "clean"  # of KINDS; both: one half as they are, the others attacked
    samples: int = 512  # training images, at most as many as there are
    data_dir: str | Path | None = None  # where torchvision's data sets lie; None: where the recipe says

    def __post_init__(self) -> None:
        if self.images not in KINDS:
            raise unknown("calibration", self.images, KINDS)
        if self.samples < 1:
            raise InvalidValue(f"calibration samples is {self.samples}; expected at least 1, better hundreds")


def calibration_images(
    bundle: Bundle, network: nn.Module, calibration: Calibration
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Return images that the bundle was trained on, and what the manifest says of them.

    They are drawn by the recipe's seed from what training saw: neither the test split nor the images that
    early stopping watched are among them. The attack is that of early stopping, within the bundle's threat.

    Returns:
        float32 [N, C, H, W] in [0, 1], and {"images", "samples", "data", "sha256"}, the last two of the set.

    Raises:
        DataError: if the data set cannot be opened, or is another one than the network was trained on.
    """
    recipe = bundle.recipe()
    data, seed = recipe.data, recipe.train.seed
    images = load_dataset(
        data.name, "train", recipe.model.image_size, recipe.model.in_chans,
        calibration.data_dir or data.dir, val_fraction=data.val_fraction,
    )  # fmt: skip
    trained_on = bundle.manifest["provenance"].get("data", {}).get("sha256", images.digest)
    if images.digest != trained_on:
        raise DataError(
            f"{data.name} is not the data set that {bundle.name} was trained on: its SHA-256 is "
            f"{images.digest[:16]}..., expected {trained_on[:16]}... Give the folder of that one with "
            "--data-dir."
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    pixels, labels = images.batch(order[: calibration.samples].tolist())
    kept = {"clean": len(pixels), "adversarial": 0, "both": len(pixels) // 2}[calibration.images]
    attacked = _attack(bundle, network, pixels[kept:], labels[kept:], seed)
    facts = {
        "images": calibration.images, "samples": len(pixels), "data": images.name, "sha256": images.digest,
    }  # fmt: skip
    return torch.cat([pixels[:kept], attacked]).numpy(), facts


def _attack(bundle: Bundle, network: nn.Module, pixels: Tensor, labels: Tensor, seed: int) -> Tensor:
    attack, threat = bundle.recipe().attack, bundle.threat
    generator = torch.Generator().manual_seed(seed)
    found = [
        pgd(
            network, x, y, threat, steps=attack.val_steps, step_size=attack.step_size * threat.eps,
            generator=generator,
        )
        for x, y in zip(pixels.split(BATCH), labels.split(BATCH), strict=True)
    ]  # fmt: skip
    return torch.cat(found)
