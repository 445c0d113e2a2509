"""The tritonserver command line for a model, and the README beside the model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from robust_export.bundle import Bundle
from robust_export.serving.triton.artifact_choice import TritonArtifact
from robust_export.serving.triton.model_config import PARAMETER_PREFIX
from robust_export.serving.triton.settings import TritonSettings


def server_command(name: str, artifact: TritonArtifact, settings: TritonSettings) -> list[str]:
    """Return the command that serves this model only."""
    words = [
        "tritonserver", f"--model-repository={settings.models}", "--model-control-mode=explicit",
        f"--load-model={name}", "--disable-auto-complete-config",
    ]  # fmt: skip
    if artifact.needs_plugin:
        words.append(f"--backend-config=tensorrt,plugins={settings.plugin}")
    if artifact.facts.get("options", {}).get("version_compatible"):
        words.append("--backend-config=tensorrt,version-compatible=true")
    return words


def server_requirements(artifact: TritonArtifact, settings: TritonSettings) -> list[str]:
    """Return what the server must have, one sentence each."""
    facts, sentences = artifact.facts, []
    if artifact.runtime == "tensorrt":
        compatible = facts["options"].get("hardware_compatible")
        gpu = f"{facts['compute_capability']}{f' (hardware-compatible: {compatible})' if compatible else ''}"
        later = " or later" if facts["options"].get("version_compatible") else ""
        sentences.append(f"TensorRT {facts['tensorrt']}{later} and a GPU of compute capability {gpu}.")
    if artifact.needs_plugin:
        sentences.append(
            f"{settings.plugin}, built against the server's TensorRT (included in the image `serve`). "
            f"The engine was built with the library of SHA-256 {facts['plugin_library']}. "
            "Load it with --backend-config as above: LD_PRELOAD opens it before TensorRT and registers "
            "nothing."
        )
    elif artifact.runtime == "tensorrt":
        sentences.append("No plugin: the engine contains the Sparta kernel.")
    elif settings.op_library:
        sentences.append(f"{settings.op_library}, and ONNX Runtime 1.18 (API 18) or later.")
    else:
        sentences.append(
            "No library: ONNX Runtime runs Sparta's function body. --op-library enables the fused kernel."
        )
    return sentences


def readme(
    bundle: Bundle, artifact: TritonArtifact, settings: TritonSettings, parameters: Mapping[str, str]
) -> str:
    """Return the README of the model's folder, in Markdown."""
    command = server_command(bundle.name, artifact, settings)
    quoted = " \\\n      ".join(shlex.quote(word) for word in command)
    rows = "\n".join(
        f"| {key.removeprefix(PARAMETER_PREFIX).replace('_', ' ')} | {text} |"
        for key, text in parameters.items()
    )
    sentences = "\n".join(f"- {sentence}" for sentence in server_requirements(artifact, settings))
    return (
        f"# {bundle.name}\n\nWritten by `robust-export triton`. Input: pixels in [0, 1]. Output: logits; "
        f"Triton's classification extension adds the labels.\n\n    {quoted}\n\n"
        f"The server needs:\n\n{sentences}\n\n| | |\n|---|---|\n{rows}\n"
    )
