"""Opening bundles: by name and path, and refusing missing, altered and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from robust_export.bundle import MANIFEST, SCHEMA, Bundle, locate
from robust_export.errors import BundleError
from robust_export.recipe.schema import Recipe, Threat
from robust_export.utils.files import sha256
from tests.small_bundle import CONTENT, GIVEN, Manifest, make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny").path


def manifest_of(folder: Path) -> Manifest:
    manifest: Manifest = json.loads((folder / MANIFEST).read_text())
    return manifest


# --- round trip ---


def test_open_returns_what_create_wrote(tmp_path: Path) -> None:
    made = make(tmp_path / "tiny", "demo")
    opened = Bundle.open(tmp_path / "tiny")
    assert opened.manifest == made.manifest == manifest_of(tmp_path / "tiny")
    assert opened.path == tmp_path / "tiny"
    assert opened.name == "demo"
    assert opened.labels == ["cat", "dog"]
    assert opened.threat == Threat("L2", 0.5)
    assert opened.recipe() == Recipe()
    assert opened.manifest["schema"] == SCHEMA


@pytest.mark.parametrize("file", CONTENT)
def test_manifest_has_digest_size_and_kind(folder: Path, file: str) -> None:
    kind, content = CONTENT[file]
    bundle = Bundle.open(str(folder))
    entry = bundle.manifest["files"][file]
    assert entry == {"sha256": sha256(folder / file), "bytes": len(content), "kind": kind}
    assert bundle.file(file) == folder / file
    assert bundle.files(kind) == [file]


def test_unlisted_file(folder: Path) -> None:
    (folder / "unlisted").write_bytes(b"x")
    bundle = Bundle.open(folder)  # unlisted files are ignored
    with pytest.raises(BundleError) as caught:
        bundle.file("unlisted")
    assert "unlisted" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert all(file in str(caught.value) for file in CONTENT)
    assert bundle.files("engine") == []


# --- altered, missing, unfinished ---


@pytest.mark.parametrize("file", [file for file, (_, content) in CONTENT.items() if content])
@pytest.mark.parametrize("position", [0, -1])
def test_one_altered_byte_is_refused(folder: Path, file: str, position: int) -> None:
    content = bytearray((folder / file).read_bytes())
    content[position] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert f"{folder / file} was altered" in str(caught.value)
    assert sha256(folder / file)[:16] in str(caught.value)


@pytest.mark.parametrize("file", CONTENT)
def test_longer_file_is_refused(folder: Path, file: str) -> None:
    with (folder / file).open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(BundleError, match=f"{file} was altered"):
        Bundle.open(folder)


@pytest.mark.parametrize("file", CONTENT)
def test_missing_file_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(BundleError, match=f"lacks {file}"):
        Bundle.open(folder)


def test_bundle_without_manifest_is_unfinished(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"unfinished.*--resume") as caught:
        Bundle.open(folder)
    assert str(folder) in str(caught.value)


# --- a damaged manifest ---


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not JSON", b"[]", b"3", b"null", b'"x"', b"{}", b"\x00", b"\xff\xfe\x00", b'{"schema": 1}'],
    ids=repr,
)
def test_invalid_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle.open(folder)


@pytest.mark.parametrize("wrong", ["missing", None, 1.5, "7"])
@pytest.mark.parametrize("key", [*GIVEN, "schema", "files"])
def test_manifest_key_of_wrong_type_is_refused(folder: Path, key: str, wrong: object) -> None:
    manifest = manifest_of(folder)
    manifest[key] = 7 if type(wrong) is type(manifest[key]) else wrong  # a valid string key gets an integer
    if wrong == "missing":
        del manifest[key]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"{MANIFEST}.*{key}"):
        Bundle.open(folder)


@pytest.mark.parametrize("schema", [SCHEMA + 1, 1000])
def test_newer_schema_asks_for_upgrade(folder: Path, schema: int) -> None:
    """Even if its other keys are unknown."""
    for manifest in ({**manifest_of(folder), "schema": schema}, {"schema": schema}):
        (folder / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=f"schema {schema}.*upgrade"):
            Bundle.open(folder)


def add_entry(folder: Path, file: str, entry: object) -> None:
    """Write an entry into the manifest with a correct own digest."""
    bundle = Bundle.open(folder)
    bundle.manifest["files"][file] = entry
    bundle.write({"model.onnx": b"graph"}, "onnx")


@pytest.mark.parametrize("file", ["../x", "checkpoints/../../x", "/x"])
def test_entry_outside_the_bundle_is_refused(folder: Path, file: str) -> None:
    outside = folder.parent / "x"
    outside.write_bytes(b"secret")
    file = str(outside) if file == "/x" else file
    add_entry(folder, file, {"sha256": sha256(outside), "bytes": 6, "kind": "onnx"})
    with pytest.raises(BundleError, match=f"{file} lies outside"):
        Bundle.open(folder)


@pytest.mark.parametrize("change", [{"sha256": 5}, {"sha256": None}, {"bytes": "700"}, {"bytes": None}])
def test_entry_of_wrong_type_is_refused(folder: Path, change: dict[str, object]) -> None:
    add_entry(folder, "weights.safetensors", {"sha256": "0" * 64, "bytes": 700, "kind": "weights", **change})
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        Bundle.open(folder)


COMPLETE = {"sha256": "0" * 64, "bytes": 700, "kind": "weights"}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "0" * 64,
        [],
        {},
        {"sha256": "0" * 64, "bytes": 700},
        {**COMPLETE, "next": "0"},
        {**COMPLETE, "next": {}},
    ],
    ids=repr,
)
def test_incomplete_entry_is_refused(folder: Path, entry: object) -> None:
    add_entry(folder, "weights.safetensors", entry)
    with pytest.raises(BundleError, match=rf"{MANIFEST} is damaged.*weights\.safetensors"):
        Bundle.open(folder)


ALTERATIONS: dict[str, Callable[[Manifest], object]] = {
    "eps": lambda manifest: manifest["threat"].update(eps=0.1),
    "labels": lambda manifest: manifest["labels"].reverse(),
    "file removed": lambda manifest: manifest["files"].pop("recipe.toml"),
    "kind": lambda manifest: manifest["files"]["model.onnx"].update(kind="weights"),
    "key added": lambda manifest: manifest.update(note=1),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_altered_manifest_is_refused(folder: Path, alteration: str) -> None:
    manifest = manifest_of(folder)
    ALTERATIONS[alteration](manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"{MANIFEST} was altered"):
        Bundle.open(folder)


# --- names and paths ---


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert locate("r18_sparta") == Path("exported/r18_sparta")
    assert locate("runs/r18_sparta") == Path("runs/r18_sparta")
    assert locate(tmp_path / "nowhere") == tmp_path / "nowhere"
    assert locate("folder") == locate("./folder") == Path("folder")


def test_open_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "exported" / "tiny")
    for name in ("tiny", "exported/tiny", Path("exported/tiny"), tmp_path / "exported" / "tiny"):
        assert Bundle.open(name).name == "tiny"


def test_missing_bundle_lists_existing_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"exported/typo.*none yet"):
        Bundle.open("typo")
    make(tmp_path / "exported" / "one")
    make(tmp_path / "exported" / "two")
    (tmp_path / "exported" / "unfinished").mkdir()
    with pytest.raises(BundleError, match=r"exported/typo \(exported has one, two\)"):
        Bundle.open("typo")
    with pytest.raises(BundleError, match=r"nowhere/typo.*none"):
        Bundle.open("nowhere/typo")


def test_file_path_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx"):
        Bundle.open(folder / "model.onnx")
