"""Static copy of the page: a folder for any web server; the visitor's browser runs the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robust_export.bundle import Bundle
from robust_export.errors import BundleError
from robust_export.serving.ui.examples_file import NAME, read_examples
from robust_export.serving.ui.ort_web import MODULE, WebRuntime
from robust_export.serving.ui.page import static_page
from robust_export.utils.files import write_atomically

MODEL, PAGE, RUNTIME = "model.onnx", "index.html", "onnxruntime-web"


def write_copy(bundle: Bundle, folder: Path, runtime: WebRuntime) -> list[Path]:
    """Write model.onnx, examples.json if the bundle has it, onnxruntime-web, and the page; return the paths.

    The page is written last, so a folder with a page is complete. All URLs in it are relative.

    Raises:
        BundleError: if the bundle has no model.onnx, or examples of another network.
    """
    check_bundle(bundle)
    input_shape = _input_shape(bundle)
    examples = read_examples(bundle, input_shape)
    model: dict[str, Any] = {
        "name": bundle.name, "labels": bundle.labels, "inputShape": input_shape, "file": MODEL,
    }  # fmt: skip
    files = {f"{RUNTIME}/{name}": content for name, content in runtime.files.items()}
    files[MODEL] = bundle.file(MODEL).read_bytes()
    if examples is not None:
        model["examplesFile"] = NAME
        files[NAME] = examples
    page = static_page({"models": [model], "runtime": f"{RUNTIME}/{MODULE}"})
    files[PAGE] = page.html.encode()
    return [write_atomically(folder / name, content) for name, content in files.items()]


def check_bundle(bundle: Bundle) -> None:
    """Raise BundleError unless the bundle has the file that browsers run."""
    if MODEL not in bundle.files("onnx"):
        raise BundleError(
            f"bundle {bundle.path} has no {MODEL}; make it with `robust-export onnx --model {bundle.path}`"
        )


def _input_shape(bundle: Bundle) -> list[int]:
    """Return [C, H, W] of the bundle's input."""
    shape = bundle.manifest["input"].get("shape", [])
    if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise BundleError(
            f"{bundle.path}/manifest.json has the input shape {shape}; expected [N, C, H, W]: "
            "train the bundle again"
        )
    return list(shape[1:])
