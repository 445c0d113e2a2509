"""Decoding at construction, on access and in workers, and damaged images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from robust_export.data import datasets
from robust_export.data.datasets import Split, load_dataset
from robust_export.errors import DataError
from tests.data.sample_data import write_folder
from tests.data.test_datasets import SPLITS, batches, same


def disable_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CACHE_BYTES", 0)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of images of many modes, sizes and formats."""
    write_folder(tmp_path, {"cat": 6, "dog": 6}, (9, 13))
    source = Image.open(tmp_path / "cat" / "000.png").convert("RGB")
    for i, (mode, suffix, size) in enumerate(
        [("L", "png", (5, 5)), ("RGBA", "png", (40, 7)), ("P", "bmp", (8, 8)), ("CMYK", "jpg", (16, 9)),
         ("1", "png", (3, 30)), ("LA", "webp", (64, 64)), ("I;16", "tiff", (10, 10)), ("RGB", "jpeg", (1, 1))]
    ):  # fmt: skip
        source.resize(size).convert("L" if mode == "I;16" else "RGB").convert(mode).save(
            tmp_path / ("cat", "dog")[i % 2] / f"mixed{i}.{suffix}"
        )
    return tmp_path


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("split", SPLITS)
def test_lazy_images_equal_cached_ones(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, split: Split, in_chans: int
) -> None:
    cached = load_dataset(f"folder:{mixed}", split, 12, in_chans)
    disable_cache(monkeypatch)
    lazy = load_dataset(f"folder:{mixed}", split, 12, in_chans)
    assert cached._cache is not None
    assert lazy._cache is None
    assert lazy[0][0].shape == (in_chans, 12, 12)
    assert same(cached, lazy)
    assert torch.equal(cached[-1][0], lazy[-1][0])


@pytest.mark.parametrize("cached", [True, False])
def test_worker_yields_equal_batches(mixed: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    if not cached:
        disable_cache(monkeypatch)
    images = load_dataset(f"folder:{mixed}", "train", 12)
    for seed in (None, 3):
        expected = list(batches(images, 4, seed=seed))
        received = list(batches(images, 4, seed=seed, workers=1))
        assert len(expected) == len(received) > 2
        for (a, b), (c, d) in zip(expected, received, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_default_size_of_a_folder(mixed: Path) -> None:
    assert load_dataset(f"folder:{mixed}")[0][0].shape == (3, 224, 224)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("mode", ["cached", "lazy", "worker"])
def test_damaged_image(mixed: Path, monkeypatch: pytest.MonkeyPatch, damage: str, mode: str) -> None:
    for path in (mixed / "cat").iterdir():
        content = path.read_bytes()
        path.write_bytes(
            {"cut": content[: len(content) * 2 // 3], "text": b"not an image", "empty": b""}[damage]
        )
    if mode == "cached":
        with pytest.raises(DataError, match=f"{mixed}/cat/.* cannot be decoded"):
            load_dataset(f"folder:{mixed}", image_size=8)
        return
    disable_cache(monkeypatch)
    images = load_dataset(f"folder:{mixed}", image_size=8)
    with pytest.raises(DataError, match=f"{mixed}/cat/.* cannot be decoded") as caught:
        list(batches(images, 2, workers=int(mode == "worker")))
    assert "Traceback" not in str(caught.value)
