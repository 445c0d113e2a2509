"""A bundle: the folder exported/<name>/ with a trained model and all files derived from it.

manifest.json lists every file with its SHA-256. A bundle without a manifest is unfinished; one with an
altered file is refused. This module does not import torch: servers read bundles.
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
"""{precision: name of the bundle's ONNX file}"""
NEXT = "next"  # key in a file's entry: the entry of the content that is about to replace it

REQUIRED: dict[str, type] = {
    "schema": int, "name": str, "created": str, "model": str, "labels": list, "input": dict,
    "output": dict, "preprocessing": dict, "threat": dict, "provenance": dict, "files": dict,
}  # fmt: skip
"""Keys of a manifest, with their types."""

ENTRY: dict[str, type] = {"sha256": str, "bytes": int, "kind": str}
"""Keys of a file's entry, with their types."""

Stamp = tuple[int, int, int]  # inode, size, mtime_ns of a file


class Bundle:
    """An opened bundle.

    A file is hashed when it is first checked, and again only if its size, modification time or inode changed.

    Attributes:
        path: the folder.
        manifest: content of manifest.json.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._checked: dict[str, Stamp] = {}

    @classmethod
    def open(cls, name_or_path: str | Path) -> Bundle:
        """Open `exported/<name>` or a path, and check all files that the manifest lists.

        Raises:
            BundleError: if the bundle is missing, unfinished, altered, or of a newer schema.
        """
        path = locate(name_or_path)
        bundle = cls(path, _read_manifest(path))
        for file in bundle.manifest["files"]:
            bundle.check(file)
        return bundle

    @classmethod
    def containing(cls, file: Path) -> Bundle:
        """Open the bundle in the folder of `file`, and check only this file.

        Other files are checked when `Bundle.file` is called.

        Raises:
            BundleError: if the folder is not a finished bundle, or its manifest or the file was altered.
        """
        resolved = file.resolve()
        bundle = cls(resolved.parent, _read_manifest(resolved.parent))
        if resolved.name in bundle.manifest["files"]:
            bundle.check(resolved.name)
        return bundle

    @classmethod
    def create(cls, path: Path, manifest: Mapping[str, Any], files: Mapping[str, str]) -> Bundle:
        """Write the manifest of the bundle in `path`, which finishes the bundle.

        Args:
            path: the folder, which has the files.
            manifest: everything but "schema" and "files".
            files: {name: kind}.
        """
        bundle = cls(path, {"schema": SCHEMA, **manifest, "files": {}})
        for name, kind in files.items():
            stamp = _stamp(path / name)
            entry = {"sha256": sha256(path / name), "bytes": stamp[1], "kind": kind}
            bundle.manifest["files"][name] = entry
            bundle._checked[name] = stamp
        bundle._write_manifest()
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
        """Return the recipe that the model was trained with."""
        return parse(load_recipe(self.file("recipe.toml")), str(self.path / "recipe.toml"))

    def file(self, name: str) -> Path:
        """Return the path of a file after checking it.

        Raises:
            BundleError: if the manifest does not list the file, or the file is missing or altered.
        """
        if name not in self.manifest["files"]:
            listed = ", ".join(self.manifest["files"])
            raise BundleError(f"bundle {self.path} has no {name}; it has {listed}")
        self.check(name)
        return self.path / name

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of any file; one of the bundle is checked, and hashed only if it changed."""
        resolved, folder = path.resolve(), self.path.resolve()
        name = resolved.relative_to(folder).as_posix() if resolved.is_relative_to(folder) else ""
        if name not in self.manifest["files"]:
            return sha256(path)
        self.check(name)
        return str(self.manifest["files"][name]["sha256"])

    def files(self, kind: str) -> list[str]:
        """Return the names of all files of a kind: "weights", "onnx", ..."""
        return [name for name, entry in self.manifest["files"].items() if entry["kind"] == kind]

    def write(self, contents: Mapping[str, bytes | str], kind: str, **facts: Any) -> list[Path]:
        """Write files into the bundle and list them in the manifest; return their paths.

        First the manifest is written with the old and the new entry of each replaced file, then the files,
        then the manifest with the new entries. If the process is killed in between, each file is completely
        old or completely new, and `check` accepts both.

        Args:
            contents: {name: content}.
            kind: of the files.
            facts: further keys of their entries, such as the precision.
        """
        data = {name: c.encode() if isinstance(c, str) else c for name, c in contents.items()}
        new = {name: _entry(content, kind, **facts) for name, content in data.items()}
        entries = self.manifest["files"]
        for name in entries.keys() & new.keys():
            entries[name] = {**entries[name], NEXT: new[name]}
        self._write_manifest()
        for name, content in data.items():
            self._checked.pop(name, None)
            write_atomically(self.path / name, content)
        entries.update(new)
        self._write_manifest()
        return [self.path / name for name in contents]

    def check(self, name: str) -> None:
        """Raise BundleError unless the file exists and has the digest in the manifest."""
        entry, path = self.manifest["files"][name], self.path / name
        if not path.is_file():
            raise BundleError(
                f"bundle {self.path} lacks {name}, which its manifest lists: restore it, or make "
                "the bundle again"
            )
        stamp = _stamp(path)  # taken before hashing: a later change gives another stamp
        if self._checked.get(name) == stamp:
            return
        digest = sha256(path)
        for known in (entry, entry.get(NEXT, {})):
            if (known.get("bytes"), known.get("sha256")) == (stamp[1], digest):
                self.manifest["files"][name] = {key: value for key, value in known.items() if key != NEXT}
                self._checked[name] = stamp
                return
        raise BundleError(
            f"{path} was altered: its SHA-256 is {digest[:16]}..., the manifest says "
            f"{entry['sha256'][:16]}... Restore the file, or make the bundle again."
        )

    def _write_manifest(self) -> None:
        """Write the manifest with its own digest, by which an altered manifest is refused."""
        self.manifest["sha256"] = _own_digest(self.manifest)
        write_atomically(self.path / MANIFEST, to_json(self.manifest))


def locate(name_or_path: str | Path) -> Path:
    """Return the folder of a bundle: a path unchanged, a name under exported/."""
    path = Path(name_or_path)
    return path if path.is_dir() or len(path.parts) > 1 else EXPORTED / path


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in ENTRY.items())


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _entry(content: bytes, kind: str, **facts: Any) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"sha256": digest, "bytes": len(content), "kind": kind, **facts}


def _own_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its key "sha256"."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        bundles = sorted(entry.parent.name for entry in path.parent.glob(f"*/{MANIFEST}"))
        listed = f"{path.parent} has {', '.join(bundles)}" if bundles else f"{path.parent} has none yet"
        raise BundleError(
            f"no bundle at {path} ({listed}). Train one with `robust-export train --model NAME`, or "
            "give its path."
        )
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path} is unfinished: it has no {MANIFEST}. If a training run was interrupted, continue it "
            "by the same command with --resume."
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read: {error}. Restore it, or train again.") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(
            f"{file} has schema {schema}, this robust-export reads up to {SCHEMA}: upgrade robust-export."
        )
    for key, kind in REQUIRED.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise BundleError(f"{file} is damaged: {key!r} is missing or not of type {kind.__name__}")
    if manifest.get("sha256") != _own_digest(manifest):
        raise BundleError(f"{file} was altered: it differs from its own digest. Restore it, or train again.")
    for name, entry in manifest["files"].items():
        if not _is_entry(entry) or not _is_entry(entry.get(NEXT, entry)):
            raise BundleError(f"{file} is damaged: the entry of {name} is incomplete")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{file} is damaged: {name} lies outside the bundle")
    return manifest
