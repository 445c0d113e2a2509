"""How Triton is to be started for a model, as flags and as a page beside it."""

from __future__ import annotations

import shlex
from typing import Any

from robust_export.bundle import Bundle
from robust_export.serving.triton.artifact_choice import Chosen
from robust_export.serving.triton.settings import TritonSettings


def server_command(name: str, chosen: Chosen, settings: TritonSettings) -> list[str]:
    """Return the words of the command that serves the model and nothing else."""
    words = [
        "tritonserver", f"--model-repository={settings.models}", "--model-control-mode=explicit",
        f"--load-model={name}", "--disable-auto-complete-config",
    ]  # fmt: skip
    if chosen.needs_plugin:
        words.append(f"--backend-config=tensorrt,plugins={settings.plugin}")
    if chosen.facts.get("options", {}).get("version_compatible"):
        words.append("--backend-config=tensorrt,version-compatible=true")
    return words


def needs(chosen: Chosen, settings: TritonSettings) -> list[str]:
    """Return what the server must have, a sentence each."""
    facts, found = chosen.facts, []
    if chosen.runtime == "tensorrt":
        compatible = facts["options"].get("hardware_compatible")
        gpu = f"{facts['compute_capability']}{f' (hardware-compatible: {compatible})' if compatible else ''}"
        later = " or later" if facts["options"].get("version_compatible") else ""
        found.append(f"TensorRT {facts['tensorrt']}{later} and a GPU of compute capability {gpu}.")
    if chosen.needs_plugin:
        found.append(
            f"{settings.plugin}, built against the server's TensorRT (the image `serve` has it). "
            f"The engine was built with the library of SHA-256 {facts['plugin_library']}. "
            "LD_PRELOAD alone registers nothing: TensorRT is not there yet when it is opened."
        )
    elif chosen.runtime == "tensorrt":
        found.append("No plugin: Sparta is in the engine.")
    elif settings.op_library:
        found.append(f"{settings.op_library}, for an ONNX Runtime of API 18 (1.18) or later.")
    else:
        found.append("No library: the file's own function body runs. --op-library names the fused kernel.")
    return found


def page(bundle: Bundle, chosen: Chosen, settings: TritonSettings, facts: dict[str, Any]) -> str:
    """Return the README of a model in a repository."""
    command = " \\\n      ".join(shlex.quote(word) for word in server_command(bundle.name, chosen, settings))
    known = "\n".join(
        f"| {key.removeprefix('robust_export.').replace('_', ' ')} | {text} |" for key, text in facts.items()
    )
    must = "\n".join(f"- {sentence}" for sentence in needs(chosen, settings))
    return (
        f"# {bundle.name}\n\nWritten by `robust-export triton`. Pixels in [0, 1] go in, logits come out; "
        f"Triton's classification extension names the labels.\n\n    {command}\n\n"
        f"The server needs:\n\n{must}\n\n| | |\n|---|---|\n{known}\n"
    )
