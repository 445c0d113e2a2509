"""Each file of a bundle is hashed once, and again after it changed."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from robust_export import bundle as bundle_module
from robust_export.bundle import Bundle
from robust_export.errors import BundleError
from robust_export.utils.files import sha256
from tests.small_bundle import CONTENT, make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny").path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each file is hashed."""
    counts: Counter[str] = Counter()

    def counting(path: str | Path) -> str:
        counts[Path(path).name] += 1
        return sha256(path)

    monkeypatch.setattr(bundle_module, "sha256", counting)
    return counts


def test_files_are_hashed_once_per_bundle(folder: Path, hashed: Counter[str]) -> None:
    bundle = Bundle.open(folder)
    assert hashed == {Path(file).name: 1 for file in CONTENT}
    bundle.recipe()
    for file in CONTENT:
        bundle.check(file)
        path = bundle.file(file)
        assert bundle.digest(path) == bundle.manifest["files"][file]["sha256"]
    assert set(hashed.values()) == {1}
    Bundle.open(folder)
    assert set(hashed.values()) == {2}


def test_created_bundle_is_not_hashed_again(tmp_path: Path, hashed: Counter[str]) -> None:
    bundle = make(tmp_path / "tiny")
    for file in CONTENT:
        bundle.file(file)
    assert set(hashed.values()) == {1}


def test_file_altered_after_opening_is_refused(folder: Path) -> None:
    bundle = Bundle.open(folder)
    path = bundle.file("model.onnx")
    os.utime(path, ns=(0, 0))
    assert bundle.file("model.onnx") == path  # hashed again: the same content
    path.write_bytes(b"other" * 100)
    for access in (bundle.file, bundle.check, lambda name: bundle.digest(folder / name)):
        with pytest.raises(BundleError, match=r"model\.onnx was altered"):
            access("model.onnx")


def test_replaced_file_is_hashed_again(folder: Path, hashed: Counter[str]) -> None:
    bundle = Bundle.open(folder)
    bundle.write({"model.onnx": b"new graph"}, "onnx")
    assert bundle.file("model.onnx").read_bytes() == b"new graph"
    assert hashed["model.onnx"] == 2


def test_containing_checks_one_file(folder: Path, hashed: Counter[str]) -> None:
    bundle = Bundle.containing(folder / "model.onnx")
    assert hashed == {"model.onnx": 1}
    (folder / "weights.safetensors").write_bytes(b"altered")
    with pytest.raises(BundleError, match="altered"):
        bundle.file("weights.safetensors")
    (folder / "model.onnx").write_bytes(b"altered")
    with pytest.raises(BundleError, match="altered"):
        Bundle.containing(folder / "model.onnx")


def test_digest_of_file_outside_the_bundle(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"x")
    assert Bundle.open(folder).digest(tmp_path / "other") == sha256(tmp_path / "other")
