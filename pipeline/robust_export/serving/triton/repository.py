"""Writing a model into a Triton model repository, atomically."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from robust_export.errors import BundleError, InvalidValue, RobustExportError
from robust_export.serving.triton.artifact_choice import MODEL_FILES, TritonArtifact
from robust_export.serving.triton.launch import readme, server_command
from robust_export.serving.triton.model_config import LABELS, config_text, model_config, model_parameters
from robust_export.serving.triton.settings import TritonSettings
from robust_export.utils.files import replace_folder, write_atomically

VERSION = "1"


@dataclass(frozen=True)
class RepositoryModel:
    """A model that was written into a repository."""

    folder: Path  # <repository>/<name>
    command: list[str]  # starts the server
    config: dict[str, Any]  # the ModelConfig in config.pbtxt
    parameters: dict[str, str]  # of the ModelConfig


def write_repository(
    bundle: Bundle, artifact: TritonArtifact, settings: TritonSettings, out: Path | None = None
) -> RepositoryModel:
    """Write the model's folder into the repository `out`, by default triton/ in the bundle.

    An existing model of the same name is replaced; other models stay.

    Raises:
        InvalidValue: if the file does not allow a setting, or the bundle's name cannot be a folder's.
        BundleError: if the file was altered, or a label has a line break.
        RobustExportError: if writing fails.
    """
    if not re.fullmatch(r"[^\s/?#@\\%.][^\s/?#@\\%]*", bundle.name):
        raise InvalidValue(
            f"bundle {bundle.path} is named {bundle.name!r}, which cannot be the name of a model in a "
            "repository; expected no spaces and / ? # @ \\ %, and no dot at the start"
        )
    parameters = model_parameters(bundle, artifact)
    config = model_config(bundle, artifact, settings, parameters)
    repository = out or bundle.path / "triton"
    target = repository / bundle.name
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=repository, prefix=f".{bundle.name}.", suffix=".tmp") as work:
            folder = Path(work) / bundle.name
            write_atomically(folder / "config.pbtxt", config_text(config))
            write_atomically(folder / LABELS, _label_lines(bundle.labels))
            write_atomically(folder / "README.md", readme(bundle, artifact, settings, parameters))
            _copy_artifact(bundle, artifact, folder / VERSION / MODEL_FILES[artifact.runtime])
            replace_folder(folder, target)
    except OSError as error:
        raise RobustExportError(
            f"could not write {target}: {error.strerror or error}. The previous content is unchanged; "
            "choose another folder with --out."
        ) from error
    return RepositoryModel(target, server_command(bundle.name, artifact, settings), config, parameters)


def _copy_artifact(bundle: Bundle, artifact: TritonArtifact, target: Path) -> None:
    """Copy the file after comparing its content with the manifest's digest."""
    source = bundle.file(artifact.file)
    content = source.read_bytes()
    if hashlib.sha256(content).hexdigest() != artifact.facts["sha256"]:
        raise BundleError(f"{source} was altered since it was opened; restore it, or make the bundle again")
    write_atomically(target, content)


def _label_lines(labels: list[str]) -> str:
    for label in labels:
        if len(label.splitlines()) != 1:
            raise BundleError(f"the label {label!r} is not one line, as {LABELS} needs")
    return "".join(f"{label}\n" for label in labels)
