"""examples.json: adversarial examples of a few test images at several radii, as the page at / shows them.

    {"schema": 1, "model": name, "weights_sha256": ..., "dataset": ..., "labels": [...], "plane": [C, H, W],
     "threat": {"norm": ..., "eps": ...}, "attack": {"name": "pgd", "steps": ..., "seed": ...},
     "radii": [...],                          in the threat's norm, ascending, without 0
     "images": [{"index": i, "label": k,      index in the test split
                 "pixels": base64 of uint8 [C, H, W],
                 "clean": {"decision": k, "margin": m},
                 "attacks": [{"scale": s, "delta": base64 of int8 [C, H, W], "decision": k, "margin": m}]}]}

An adversarial example is float32(clip(pixels / 255 + scale * delta, 0, 1)), computed in float64; its distance
from the image is at most the radius. The margin is the label's logit minus the largest other logit, of the
reference model on exactly that image: below 0 the attack has succeeded. This module does not import torch.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.bundle import Bundle
from robust_export.errors import BundleError
from robust_export.runtimes.classifier import Pixels

NAME, KIND, SCHEMA = "examples.json", "examples", 1
LEVELS = 127  # quantization levels of a delta, to each side
WEIGHTS = "weights.safetensors"

Bytes = npt.NDArray[np.uint8]
Deltas = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float64]


def quantize(clean: Bytes, adversarial: Pixels) -> tuple[Deltas, Floats]:
    """Return the perturbations as int8 [N, C, H, W], and the scale of each, [N].

    An image's scale is its largest change / 127, and changes are rounded towards 0, so the result is not
    farther from the image than the attack was, in any norm.
    """
    change = adversarial.astype(np.float64) - clean / 255.0
    largest = np.abs(change).max(axis=(1, 2, 3), keepdims=True)
    scale = np.where(largest > 0, largest / LEVELS, 1.0)
    levels = np.floor(np.abs(change) / scale + 1e-6).clip(0, LEVELS)  # 1e-6: the largest change gets 127
    return (np.sign(change) * levels).astype(np.int8), scale.reshape(-1)


def dequantize(clean: Bytes, delta: Deltas, scale: Floats) -> Pixels:
    """Return the adversarial examples, float32 [N, C, H, W] in [0, 1]."""
    exact = clean / 255.0 + scale.reshape(-1, 1, 1, 1) * delta
    return exact.clip(0, 1).astype(np.float32)


def encode(array: Bytes | Deltas) -> str:
    """Return the bytes of an array as base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def read_examples(bundle: Bundle, input_shape: Sequence[int]) -> bytes | None:
    """Return the content of the bundle's examples.json, or None if it has none.

    Args:
        input_shape: (C, H, W) of the network.

    Raises:
        BundleError: if the file's network, labels or image size differ from the bundle's.
    """
    if NAME not in bundle.manifest["files"]:
        return None
    path = bundle.file(NAME)
    remedy = f"Make it again with `robust-export page --model {bundle.path}`."
    try:
        content = path.read_bytes()
        examples: dict[str, Any] = json.loads(content)
        values = [examples[key] for key in ("schema", "weights_sha256", "labels", "plane")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error!r}. {remedy}") from None
    expected = [SCHEMA, weights_digest(bundle), bundle.labels, list(input_shape)]
    for key, value, wanted in zip(("schema", "weights", "labels", "plane"), values, expected, strict=True):
        if value != wanted:
            raise BundleError(
                f"{path} is not of this bundle: its {key} is {value}; expected {wanted}. {remedy}"
            )
    return content


def robust_counts(examples: dict[str, Any]) -> list[int]:
    """Return for each radius how many images the network still classifies correctly."""
    return [
        sum(image["attacks"][i]["margin"] > 0 for image in examples["images"])
        for i in range(len(examples["radii"]))
    ]


def weights_digest(bundle: Bundle) -> str:
    """Return the SHA-256 of the bundle's weights, or "" if it has none."""
    return str(bundle.manifest["files"].get(WEIGHTS, {}).get("sha256", ""))
