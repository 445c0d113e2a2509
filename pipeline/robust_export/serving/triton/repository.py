"""Writes a model repository for Triton: one folder a model, whole or not there."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from robust_export.errors import BundleError, InvalidValue, RobustExportError
from robust_export.serving.triton.artifact_choice import MODEL_FILES, Chosen
from robust_export.serving.triton.launch import page, server_command
from robust_export.serving.triton.model_config import LABELS, facts, model_config
from robust_export.serving.triton.settings import TritonSettings
from robust_export.serving.triton.text_format import to_text
from robust_export.utils.files import replace_folder, write_atomically

VERSION = "1"


@dataclass(frozen=True)
class Written:
    """A model in a repository, and how to serve it."""

    folder: Path  # <repository>/<name>
    command: list[str]  # of the server
    config: dict[str, Any]  # what config.pbtxt says
    facts: dict[str, str]  # its parameters


def write_repository(
    bundle: Bundle, chosen: Chosen, settings: TritonSettings, out: Path | None = None
) -> Written:
    """Write the model's folder into the repository `out`, triton/ in the bundle by default.

    A model of the same name that is there is replaced; others stay.

    Raises:
        InvalidValue: for a setting that the file does not allow, or a name that no repository can hold.
        BundleError: if the file was altered, or a label spans lines.
        RobustExportError: if the disk refuses it.
    """
    if not re.fullmatch(r"[^\s/?#@\\%.][^\s/?#@\\%]*", bundle.name):
        raise InvalidValue(f"the bundle {bundle.path} is named {bundle.name!r}, which no repository can hold")
    known = facts(bundle, chosen)
    config = model_config(bundle, chosen, settings, known)
    repository = out or bundle.path / "triton"
    target = repository / bundle.name
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=repository, prefix=f".{bundle.name}.", suffix=".tmp") as work:
            made = Path(work) / bundle.name
            write_atomically(made / "config.pbtxt", to_text(config) + "\n")
            write_atomically(made / LABELS, _lines(bundle.labels))
            write_atomically(made / "README.md", page(bundle, chosen, settings, known))
            _copy(bundle, chosen, made / VERSION / MODEL_FILES[chosen.runtime])
            replace_folder(made, target)
    except OSError as error:
        raise RobustExportError(
            f"could not write {target}: {error.strerror or error}. What was there before is untouched; "
            "choose another folder with --out."
        ) from error
    return Written(target, server_command(bundle.name, chosen, settings), config, known)


def _copy(bundle: Bundle, chosen: Chosen, target: Path) -> None:
    """Copy the file, whose content is held against the manifest's digest."""
    source = bundle.file(chosen.file)
    content = source.read_bytes()
    if hashlib.sha256(content).hexdigest() != chosen.facts["sha256"]:
        raise BundleError(f"{source} was altered since it was opened; restore it, or make the bundle again")
    write_atomically(target, content)


def _lines(labels: list[str]) -> str:
    for label in labels:
        if len(label.splitlines()) != 1:
            raise BundleError(f"the label {label!r} is no line, so that {LABELS} cannot hold it")
    return "".join(f"{label}\n" for label in labels)
