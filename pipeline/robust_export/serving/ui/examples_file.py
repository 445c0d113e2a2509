"""examples.json: attacks on a few test images at several radii, as the page at / shows them.

    {"schema": 1, "model": name, "weights_sha256": ..., "dataset": ..., "labels": [...], "plane": [C, H, W],
     "threat": {"norm": ..., "eps": ...}, "attack": {"name": "pgd", "steps": ..., "seed": ...},
     "radii": [...],                          in the threat's norm, ascending, without 0
     "images": [{"index": i, "label": k,      of the test split
                 "pixels": base64 of uint8 [C, H, W],
                 "clean": {"decision": k, "margin": m},
                 "attacks": [{"scale": s, "delta": base64 of int8 [C, H, W], "decision": k, "margin": m}]}]}

An attack's image is float32(clip(pixels / 255 + scale * delta, 0, 1)), computed in float64; it is at most its
radius away. The margin is the label's logit less the largest other one, of the bundle's network on that very
image: below 0 the attack has succeeded. Nothing here imports torch.
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
STEPS = 127  # of a delta, to each side
WEIGHTS = "weights.safetensors"

Bytes = npt.NDArray[np.uint8]
Deltas = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float64]


def quantise(clean: Bytes, attacked: Pixels) -> tuple[Deltas, Floats]:
    """Return what an attack adds to images, int8 [N, C, H, W], and the unit of each, [N].

    Each image's unit is its largest change / 127, and changes are rounded towards 0: the result is no farther
    from the image than the attack was, in any norm.
    """
    change = attacked.astype(np.float64) - clean / 255.0
    largest = np.abs(change).max(axis=(1, 2, 3), keepdims=True)
    unit = np.where(largest > 0, largest / STEPS, 1.0)
    steps = np.floor(np.abs(change) / unit + 1e-6).clip(0, STEPS)  # 127 units are the largest change itself
    return (np.sign(change) * steps).astype(np.int8), unit.reshape(-1)


def restore(clean: Bytes, delta: Deltas, unit: Floats) -> Pixels:
    """Return the images that a file's deltas stand for, float32 [N, C, H, W] in [0, 1]."""
    exact = clean / 255.0 + unit.reshape(-1, 1, 1, 1) * delta
    return exact.clip(0, 1).astype(np.float32)


def encode(array: Bytes | Deltas) -> str:
    """Return the bytes of an array as base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def read(bundle: Bundle, plane: Sequence[int]) -> bytes | None:
    """Return the bundle's examples.json as it is, None where there is none.

    Raises:
        BundleError: if it belongs to another network, other labels or other images than the bundle's.
    """
    if NAME not in bundle.manifest["files"]:
        return None
    path = bundle.file(NAME)
    again = f"Make it again with `robust-export page --model {bundle.path}`."
    try:
        content = path.read_bytes()
        found: dict[str, Any] = json.loads(content)
        seen = [found[key] for key in ("schema", "weights_sha256", "labels", "plane")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error!r}. {again}") from None
    expected = [SCHEMA, weights_digest(bundle), bundle.labels, list(plane)]
    for key, one, other in zip(("schema", "weights", "labels", "plane"), seen, expected, strict=True):
        if one != other:
            raise BundleError(f"{path} is not of this bundle: its {key} is {one}; expected {other}. {again}")
    return content


def held(found: dict[str, Any]) -> list[int]:
    """Return how many images the network reads right under the attack, by radius."""
    return [
        sum(image["attacks"][i]["margin"] > 0 for image in found["images"])
        for i in range(len(found["radii"]))
    ]


def weights_digest(bundle: Bundle) -> str:
    """Return the SHA-256 of the bundle's weights, nothing where it has none."""
    return str(bundle.manifest["files"].get(WEIGHTS, {}).get("sha256", ""))
