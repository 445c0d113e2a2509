"""Selection of the artifacts to verify: files in the bundle or elsewhere, and URLs of served models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_export.bundle import Bundle
from robust_export.errors import ArtifactError, BundleError
from robust_export.runtimes.registry import is_url
from robust_export.runtimes.tensorrt.classifier import gpu_mismatch

AUTO = "auto"  # the runtime that fits a file


def select_artifacts(
    bundle: Bundle, artifacts: Sequence[str | Path], runtime: str = AUTO
) -> tuple[list[str | Path], dict[str, str]]:
    """Return the files and URLs to verify, and the engines to verify on another machine, with the reason.

    Args:
        artifacts: files and URLs; a bare name is looked up in the bundle first. Empty: all artifacts of the
            bundle that the runtime accepts, except engines for other GPUs than this machine's.

    Raises:
        BundleError: if `artifacts` is empty and the bundle has none.
        ArtifactError: if a file is missing.
    """
    if artifacts:
        return list(dict.fromkeys(_resolve(bundle, item) for item in artifacts)), {}
    onnx = bundle.files("onnx") if runtime != "tensorrt" else []
    engines = bundle.files("engine") if runtime in (AUTO, "tensorrt") else []
    elsewhere = {name: why for name in engines if (why := _gpu_mismatch(bundle, name))}
    selected: list[str | Path] = [bundle.file(name) for name in (*onnx, *engines) if name not in elsewhere]
    if not selected:
        raise BundleError(
            f"bundle {bundle.path} has no artifact that can be verified on this machine"
            + "".join(f"\n  {name}: {why}" for name, why in elsewhere.items())
            + f"\nExport one with `robust-export {'tensorrt' if runtime == 'tensorrt' else 'onnx'} --model "
            f"{bundle.name}`."
        )
    return selected, elsewhere


def _resolve(bundle: Bundle, item: str | Path) -> str | Path:
    if is_url(str(item)):
        return str(item)
    inside = bundle.path / item
    path = inside if inside.is_file() else Path(item)
    if not path.is_file():
        raise ArtifactError(
            f"artifact {path} does not exist; give a file, or http://host:port/v2/models/NAME"
        )
    return path


def _gpu_mismatch(bundle: Bundle, name: str) -> str:
    """Return why an engine of the bundle cannot run on this machine, "" if it can."""
    try:
        return gpu_mismatch(bundle.manifest["files"][name])
    except ArtifactError as error:
        return str(error)
