"""A small bundle with placeholder files, which is written in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from robust_export.recipe.recipe_file import to_toml
from robust_export.recipe.schema import Recipe
from robust_export.utils.provenance import now

Manifest = dict[str, Any]

CONTENT = {
    "weights.safetensors": ("weights", b"weights" * 100),
    "model.onnx": ("onnx", b"graph" * 100),
    "checkpoints/last": ("checkpoint", b"\x00"),
    "empty.json": ("report", b""),
    "recipe.toml": ("recipe", to_toml(Recipe()).encode()),
}

GIVEN: Manifest = {
    "name": "tiny",
    "created": now(),
    "model": "r18_sparta",
    "labels": ["cat", "dog"],
    **{key: {} for key in ("input", "output", "preprocessing")},
    "threat": {"norm": "L2", "eps": 0.5},
    "provenance": {"seed": 0},
}


def make(path: Path, name: str = "tiny") -> Bundle:
    """Write a small bundle to `path`."""
    for file, (_, content) in CONTENT.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(content)
    return Bundle.create(path, {**GIVEN, "name": name}, {file: kind for file, (kind, _) in CONTENT.items()})
