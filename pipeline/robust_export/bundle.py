"""A bundle: the folder exported/<name>/ with a trained model and everything derived from it.

manifest.json lists every file with its digest. A bundle without a manifest is unfinished; one whose
files differ from their digests is refused. Nothing here imports torch: servers read bundles too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robust_export.errors import BundleError
from robust_export.recipe.recipe_file import dataclass_from_table, load_recipe, parse
from robust_export.recipe.schema import Recipe, Threat
from robust_export.utils.files import sha256, to_json, write_atomically

SCHEMA = 1
MANIFEST = "manifest.json"
EXPORTED = Path("exported")
ONNX_FILES = {
    "fp32": "model.onnx", "fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx", "int8": "model.int8.onnx",
}  # fmt: skip
"""{precision: what the bundle's ONNX file of it is called}"""
NEXT = "next"  # in a file's entry: that of the file which is about to take its place

REQUIRED: dict[str, type] = {
    "schema": int, "name": str, "created": str, "model": str, "labels": list, "input": dict,
    "output": dict, "preprocessing": dict, "threat": dict, "provenance": dict, "files": dict,
}  # fmt: skip


ENTRY: dict[str, type] = {"sha256": str, "bytes": int, "kind": str}


class Bundle:
    """An opened bundle whose files have been checked against their digests."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, name_or_path: str | Path) -> Bundle:
        """Open `exported/<name>` or a path, and check every file that the manifest lists.

        Raises:
            BundleError: if it is missing, unfinished, altered, or of a newer schema.
        """
        path = locate(name_or_path)
        bundle = cls(path, _read_manifest(path))
        for file in bundle.manifest["files"]:
            bundle.check(file)
        return bundle

    @classmethod
    def create(cls, path: Path, manifest: Mapping[str, Any], files: Mapping[str, str]) -> Bundle:
        """Finish the bundle in `path`: write the manifest that makes it one.

        Args:
            files: the kind of every file that is part of it, by name.
        """
        entries = {name: _entry(path / name, kind) for name, kind in files.items()}
        bundle = cls(path, {"schema": SCHEMA, **manifest, "files": entries})
        bundle._write()
        return bundle

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def labels(self) -> list[str]:
        return list(self.manifest["labels"])

    @property
    def threat(self) -> Threat:
        return dataclass_from_table(Threat, self.manifest["threat"], f"{self.path}/{MANIFEST}: threat")

    def recipe(self) -> Recipe:
        """Return the recipe that the bundle was trained by."""
        return parse(load_recipe(self.file("recipe.toml")), str(self.path / "recipe.toml"))

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists.

        Raises:
            BundleError: if the bundle has no such file.
        """
        if name not in self.manifest["files"]:
            have = ", ".join(self.manifest["files"])
            raise BundleError(f"bundle {self.path} has no {name}; it has {have}")
        return self.path / name

    def files(self, kind: str) -> list[str]:
        """Return the names of the files of a kind: "weights", "onnx", ..."""
        return [name for name, entry in self.manifest["files"].items() if entry["kind"] == kind]

    def write(self, contents: Mapping[str, bytes | str], kind: str, **facts: Any) -> list[Path]:
        """Write files into the bundle, or replace them, and list them.

        The manifest first says which digests are coming: whenever this is killed, each file is the old or the
        new one, whole, and readers know both.
        """
        data = {name: c.encode() if isinstance(c, str) else c for name, c in contents.items()}
        coming = {name: _described(content, kind, **facts) for name, content in data.items()}
        entries = self.manifest["files"]
        for name in entries.keys() & coming.keys():
            entries[name] = {**entries[name], NEXT: coming[name]}
        self._write()
        for name, content in data.items():
            write_atomically(self.path / name, content)
        entries.update(coming)
        self._write()
        return [self.path / name for name in contents]

    def check(self, name: str) -> None:
        """Raise BundleError unless the file is there and as it was when it was listed."""
        entry, path = self.manifest["files"][name], self.path / name
        if not path.is_file():
            raise BundleError(
                f"bundle {self.path} lacks {name}, which its manifest lists: restore it, or make "
                "the bundle again"
            )
        size, digest = path.stat().st_size, sha256(path)
        for known in (entry, entry.get(NEXT, {})):
            if (known.get("bytes"), known.get("sha256")) == (size, digest):
                self.manifest["files"][name] = {key: value for key, value in known.items() if key != NEXT}
                return
        raise BundleError(
            f"{path} was altered: its SHA-256 is {digest[:16]}..., the manifest says "
            f"{entry['sha256'][:16]}... Restore the file, or make the bundle again."
        )

    def _write(self) -> None:
        """Write the manifest, with the digest of itself that guards it as it guards the files."""
        self.manifest["sha256"] = _own_digest(self.manifest)
        write_atomically(self.path / MANIFEST, to_json(self.manifest))


def locate(name_or_path: str | Path) -> Path:
    """Return the folder of a bundle: a path as it is, a name under exported/."""
    path = Path(name_or_path)
    return path if path.is_dir() or len(path.parts) > 1 else EXPORTED / path


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in ENTRY.items())


def _entry(path: Path, kind: str, **facts: Any) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size, "kind": kind, **facts}


def _described(content: bytes, kind: str, **facts: Any) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"sha256": digest, "bytes": len(content), "kind": kind, **facts}


def _own_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that a manifest says but its own digest."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        there = sorted(entry.parent.name for entry in path.parent.glob(f"*/{MANIFEST}"))
        have = f"there is {', '.join(there)}" if there else "there is none yet"
        raise BundleError(
            f"no bundle at {path} ({have}). Train one with `robust-export train --model NAME`, or "
            "give its path."
        )
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path} is unfinished: it has no {MANIFEST}. If a training run was interrupted, go on "
            "with the same command and --resume."
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read: {error}. Restore it, or train again.") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(
            f"{file} has schema {schema}, this robust-export reads up to {SCHEMA}: it was made by a "
            "newer version; upgrade robust-export."
        )
    for key, kind in REQUIRED.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise BundleError(f"{file} is damaged: {key!r} is missing or no {kind.__name__}")
    if manifest.get("sha256") != _own_digest(manifest):
        raise BundleError(f"{file} was altered: it differs from its own digest. Restore it, or train again.")
    for name, entry in manifest["files"].items():
        if not _is_entry(entry) or not _is_entry(entry.get(NEXT, entry)):
            raise BundleError(f"{file} is damaged: the entry of {name} is incomplete")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{file} is damaged: {name} lies outside the bundle")
    return manifest
