"""The house: who may import whom, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "pipeline" / "robust_export"

FLOORS = [
    {"errors", "extras", "op"},
    {"classifier", "config", "device", "files", "gate", "images", "onnx_file", "stop", "timing"},
    {"draws", "headers", "pointwise", "recipe", "sparta", "units"},
    {"native", "activations", "attacks", "bundle", "checkpoint", "data", "processes", "stem", "weights"},
    {"flavors", "models", "nvrtc", "optim", "provenance", "workspace"},
    {"export", "runtimes", "training", "web"},
    {"bench", "comparison", "deployment", "serving", "verification"},
    {"demo", "doctor"},
    {"console"},
    {"cli"},
    {"__main__"},
]
"""A room stands only on rooms of lower floors, or of its own folder (docs/architecture.md)."""


def room(module: str) -> str:
    """Return the room of "robust_export.data.sources": "data"."""
    return module.split(".")[1]


def imports() -> set[tuple[str, str]]:
    """Return (room, room it imports) for every import in the package."""
    found = set()
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found |= {(parts[0], room(n)) for n in names if n.startswith("robust_export.")}
    return {(a, b) for a, b in found if a != b}


def test_every_room_has_a_floor_and_every_floor_its_rooms() -> None:
    rooms = {p.stem for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert rooms - {"__init__"} == set().union(*FLOORS)


@pytest.mark.parametrize(("upper", "lower"), sorted(imports()))
def test_imports_go_down(upper: str, lower: str) -> None:
    floor = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}
    assert floor[upper] > floor[lower]


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("robust_export", "numpy"),
        ("robust_export.bundle", "torch"),
        ("robust_export.deployment", "torch"),
        ("robust_export.images", "torch"),
        ("robust_export.runtimes.onnxruntime", "torch"),
        ("robust_export.serving.workers", "torch"),
        ("robust_export.web.copy", "torch"),
        ("robust_export.cli", "torch"),
        ("robust_export.cli", "starlette"),
    ],
)
def test_what_serves_does_not_import_torch(module: str, banned: str) -> None:
    code = f"import sys, {module}; sys.exit({banned!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_rooms_are_not_crowded() -> None:
    crowded = {f.name: n for f in SOURCE.rglob("*.py") if (n := len(f.read_text().splitlines())) > 320}
    assert not crowded
