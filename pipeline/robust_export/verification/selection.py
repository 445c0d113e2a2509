"""Which artifacts are verified: files of the bundle or elsewhere, and addresses of served models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError
from robust_export.runtimes.registry import is_url
from robust_export.runtimes.tensorrt.classifier import why_elsewhere

AUTO = "auto"  # the runtime that fits a file
ENGINE = ".engine"


def listed(
    bundle: Bundle, given: Sequence[str | Path], runtime: str = AUTO
) -> tuple[list[str | Path], dict[str, str]]:
    """Return the files and addresses to judge, and the engines that another machine must judge, and why.

    Those given are judged; by default all of the bundle's that the runtime takes, but for engines of other
    GPUs than the one that is there. A bare name is looked up in the bundle first.

    Raises:
        BundleError: if none is given and the bundle has none.
        ArtifactError: if a file is missing.
    """
    if given:
        return list(dict.fromkeys(_given(bundle, item) for item in given)), {}
    onnx = bundle.files("onnx") if runtime != "tensorrt" else []
    engines = bundle.files("engine") if runtime in (AUTO, "tensorrt") else []
    elsewhere = {name: why for name in engines if (why := _why_elsewhere(bundle, name))}
    found: list[str | Path] = [bundle.file(name) for name in (*onnx, *engines) if name not in elsewhere]
    if not found:
        raise BundleError(
            f"bundle {bundle.path} has no artifact yet that can be verified here"
            + "".join(f"\n  {name}: {why}" for name, why in elsewhere.items())
            + f"\nMake one with `robust-export {'tensorrt' if runtime == 'tensorrt' else 'onnx'} --model "
            f"{bundle.name}`."
        )
    return found, elsewhere


def _given(bundle: Bundle, item: str | Path) -> str | Path:
    if is_url(str(item)):
        return str(item)
    inside = bundle.path / item
    path = inside if inside.is_file() else Path(item)
    if not path.is_file():
        raise ArtifactError(f"there is no artifact {path}; give a file, or http://host:port/v2/models/NAME")
    return path


def _why_elsewhere(bundle: Bundle, name: str) -> str:
    """Return why an engine of the bundle is not judged here, nothing if it can be."""
    try:
        return why_elsewhere(bundle.manifest["files"][name])
    except ArtifactError as error:
        return str(error)
