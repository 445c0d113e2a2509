"""Reads examples.json by its description, apart from the code that writes it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def clean(found: dict[str, Any], image: int) -> npt.NDArray[np.uint8]:
    raw = base64.b64decode(found["images"][image]["pixels"], validate=True)
    return np.frombuffer(raw, np.uint8).reshape(found["plane"])


def inputs(found: dict[str, Any], image: int) -> Array:
    """Return what the model is given of an image, [1 + radii, C, H, W], no attack first."""
    base = clean(found, image) / 255.0
    planes = [base]
    for attack in found["images"][image]["attacks"]:
        raw = base64.b64decode(attack["delta"], validate=True)
        delta = np.frombuffer(raw, np.int8).reshape(found["plane"])
        planes.append(np.clip(base + attack["scale"] * delta, 0, 1))
    return np.stack(planes).astype(np.float32)


def said(found: dict[str, Any], image: int, key: str) -> list[Any]:
    """Return decisions or margins as the file has them, no attack first."""
    entry = found["images"][image]
    return [entry["clean"][key], *(attack[key] for attack in entry["attacks"])]


def margins(logits: Array, label: int) -> Array:
    others = np.delete(logits, label, axis=1).max(axis=1)
    return np.asarray(logits[:, label] - others)


def a_photo(folder: Path, size: tuple[int, int] = (31, 20), mode: str = "RGB", seed: int = 0) -> Path:
    """Write a PNG of noise, width and height."""
    from PIL import Image

    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    path = folder / f"{mode}-{size[0]}x{size[1]}.png"
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    return path
