"""Reads examples.json by its documentation, independent of the code that writes it; makes test images."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def clean(content: dict[str, Any], image: int) -> npt.NDArray[np.uint8]:
    raw = base64.b64decode(content["images"][image]["pixels"], validate=True)
    return np.frombuffer(raw, np.uint8).reshape(content["plane"])


def inputs(content: dict[str, Any], image: int) -> Array:
    """Return the model inputs of an image, [1 + radii, C, H, W]: without an attack, then by radius."""
    base = clean(content, image) / 255.0
    inputs = [base]
    for attack in content["images"][image]["attacks"]:
        raw = base64.b64decode(attack["delta"], validate=True)
        delta = np.frombuffer(raw, np.int8).reshape(content["plane"])
        inputs.append(np.clip(base + attack["scale"] * delta, 0, 1))
    return np.stack(inputs).astype(np.float32)


def values(content: dict[str, Any], image: int, key: str) -> list[Any]:
    """Return the decisions or margins in the file: without an attack, then by radius."""
    entry = content["images"][image]
    return [entry["clean"][key], *(attack[key] for attack in entry["attacks"])]


def margins(logits: Array, label: int) -> Array:
    others = np.delete(logits, label, axis=1).max(axis=1)
    return np.asarray(logits[:, label] - others)


def noise_png(folder: Path, size: tuple[int, int] = (31, 20), mode: str = "RGB", seed: int = 0) -> Path:
    """Write a PNG of noise; size: width, height."""
    from PIL import Image

    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    path = folder / f"{mode}-{size[0]}x{size[1]}.png"
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    return path
