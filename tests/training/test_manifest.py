"""The provenance of a bundle's manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from robust_export.training.run import train
from tests.conftest import tiny_recipe
from tests.data.sample_data import write_folder


def test_extra_images_are_recorded(tmp_path: Path) -> None:
    write_folder(tmp_path / "extra", {"3": 4, "8": 4})
    change: dict[str, Any] = {
        "data": {"extra": f"folder:{tmp_path / 'extra'}", "extra_ratio": 0.25, "randaugment": 1},
        "train": {"method": "mart", "epochs": 1, "batch_size": 256},
    }  # fmt: skip
    bundle = train(tiny_recipe(**change), tmp_path / "run", device="cpu")
    facts = bundle.manifest["provenance"]["extra_data"]
    assert facts.keys() == {"name", "sha256", "images", "ratio"}
    assert (facts["images"], facts["ratio"]) == (8, 0.25)
    assert len(facts["sha256"]) == 64


def test_no_extra_images_are_recorded_without_them(trained: Path) -> None:
    assert "extra_data" not in Bundle.open(trained).manifest["provenance"]
