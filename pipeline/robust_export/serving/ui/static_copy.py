"""The page as a folder that needs no server of ours: visitors' own browsers run the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from robust_export.errors import BundleError
from robust_export.serving.ui.examples_file import NAME, read
from robust_export.serving.ui.ort_web import MODULE, WebRuntime
from robust_export.serving.ui.page import static_page
from robust_export.utils.files import write_atomically

MODEL, PAGE, RUNTIME = "model.onnx", "index.html", "onnxruntime-web"


def write_copy(bundle: Bundle, folder: Path, runtime: WebRuntime) -> list[Path]:
    """Write the page, the bundle's model.onnx, its examples if it has any, and what runs them in browsers.

    The page comes last, so that a folder that has it has everything. Addresses in it are relative: any server
    of files can serve the folder, at any place.

    Raises:
        BundleError: if the bundle has no model.onnx, or examples of another network.
    """
    check(bundle)
    plane = _plane(bundle)
    examples = read(bundle, plane)
    facts: dict[str, Any] = {"name": bundle.name, "labels": bundle.labels, "plane": plane, "file": MODEL}
    files = {f"{RUNTIME}/{name}": content for name, content in runtime.files.items()}
    files[MODEL] = bundle.file(MODEL).read_bytes()
    if examples is not None:
        facts["examplesFile"] = NAME
        files[NAME] = examples
    page = static_page({"models": [facts], "runtime": f"{RUNTIME}/{MODULE}"})
    files[PAGE] = page.html.encode()
    return [write_atomically(folder / name, content) for name, content in files.items()]


def check(bundle: Bundle) -> None:
    """Raise BundleError unless the bundle has what visitors' browsers can run."""
    if MODEL not in bundle.files("onnx"):
        raise BundleError(
            f"bundle {bundle.path} has no {MODEL}; make it with `robust-export onnx --model {bundle.path}`"
        )


def _plane(bundle: Bundle) -> list[int]:
    """Return C, H, W of the images that the bundle's network takes."""
    shape = bundle.manifest["input"].get("shape", [])
    if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise BundleError(f"{bundle.path}/manifest.json says no shape of the input; train the bundle again")
    return list(shape[1:])
