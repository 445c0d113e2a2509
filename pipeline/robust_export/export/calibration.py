"""Training images for the calibration of int8 files: clean, adversarial or both."""

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

CALIBRATION_IMAGES = ("clean", "adversarial", "both")
ATTACK_BATCH = 256  # images attacked at once


@dataclass(frozen=True)
class Calibration:
    """The images on which the ranges of activations are measured.

    Attributes:
        images: one of CALIBRATION_IMAGES; "both" is one half clean, the other adversarial.
        samples: number of training images, at most; all if there are fewer.
        data_dir: the folder of torchvision's data sets; None is the recipe's.
    """

    images: str = "clean"
    samples: int = 512
    data_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if self.images not in CALIBRATION_IMAGES:
            raise unknown("calibration", self.images, CALIBRATION_IMAGES)
        if self.samples < 1:
            raise InvalidValue(
                f"calibration samples is {self.samples}; expected at least 1, preferably hundreds"
            )


def calibration_images(
    bundle: Bundle, network: nn.Module, calibration: Calibration
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Return calibration images and their entry for the manifest.

    The images are drawn with the recipe's seed from the training split, without the images of validation.
    The attack is the one of validation (PGD), within the bundle's threat model.

    Returns:
        pixels: float32 [N, C, H, W] in [0, 1].
        facts: {"images", "samples", "data", "sha256"}; the last two are the data set's name and digest.

    Raises:
        DataError: if the data set cannot be opened, or is not the one that the network was trained on.
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
            f"{images.digest[:16]}..., expected {trained_on[:16]}... Pass that data set's folder with "
            "--data-dir."
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    pixels, labels = images.batch(order[: calibration.samples].tolist())
    clean = {"clean": len(pixels), "adversarial": 0, "both": len(pixels) // 2}[calibration.images]
    adversarial = _attack(bundle, network, pixels[clean:], labels[clean:], seed)
    facts = {
        "images": calibration.images, "samples": len(pixels), "data": images.name, "sha256": images.digest,
    }  # fmt: skip
    return torch.cat([pixels[:clean], adversarial]).numpy(), facts


def _attack(bundle: Bundle, network: nn.Module, pixels: Tensor, labels: Tensor, seed: int) -> Tensor:
    attack, threat = bundle.recipe().attack, bundle.threat
    generator = torch.Generator().manual_seed(seed)
    adversarial = [
        pgd(
            network, x, y, threat, steps=attack.val_steps, step_size=attack.step_size * threat.eps,
            generator=generator,
        )
        for x, y in zip(pixels.split(ATTACK_BATCH), labels.split(ATTACK_BATCH), strict=True)
    ]  # fmt: skip
    return torch.cat(adversarial)
