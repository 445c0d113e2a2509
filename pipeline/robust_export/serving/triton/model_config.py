"""Triton's ModelConfig of a bundle's file, and its text, config.pbtxt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import text_format
from google.protobuf.json_format import ParseDict

from robust_export.bundle import Bundle
from robust_export.errors import BundleError, InvalidValue
from robust_export.serving.proto.messages import load_messages
from robust_export.serving.triton.artifact_choice import MODEL_FILES, TritonArtifact
from robust_export.serving.triton.settings import TritonSettings

DEFAULT_BATCH = 32  # images, for ONNX files, which take batches of any size
LABELS, REPORT = "labels.txt", "verify.json"
WORST_FIRST = ("fail", "undecided", "pass")
PLATFORMS = {"tensorrt": {"platform": "tensorrt_plan"}, "onnx": {"backend": "onnxruntime"}}
PARAMETER_PREFIX = "robust_export."


def config_text(config: Mapping[str, Any]) -> str:
    """Return a ModelConfig in protobuf's text format, ASCII only."""
    message = ParseDict(config, load_messages("triton_model_config")["ModelConfig"]())
    return str(text_format.MessageToString(message, as_utf8=False))


def model_config(
    bundle: Bundle, artifact: TritonArtifact, settings: TritonSettings, parameters: Mapping[str, str]
) -> dict[str, Any]:
    """Return the ModelConfig as nested fields.

    Args:
        parameters: from `model_parameters`.

    Raises:
        InvalidValue: if the file does not allow a setting.
        BundleError: if the manifest does not describe the model's input and output.
    """
    max_batch = max_batch_size(artifact, settings)
    preferred = preferred_batch_sizes(artifact, settings, max_batch)
    input_config, output_config = tensor_config(bundle, "input"), tensor_config(bundle, "output")
    config: dict[str, Any] = {
        "name": bundle.name, **PLATFORMS[artifact.runtime], "max_batch_size": max_batch,
        "default_model_filename": MODEL_FILES[artifact.runtime],
        "input": [input_config], "output": [output_config | {"label_filename": LABELS}],
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [_instance_group(artifact, settings)],
        "dynamic_batching": _dynamic_batching(settings, preferred),
        "model_warmup": [_warmup(input_config, size) for size in sorted({1, *preferred})],
    }  # fmt: skip
    if settings.op_library:
        if artifact.runtime != "onnx":
            raise InvalidValue(
                "--op-library is for ONNX Runtime, which does not run engines: add --runtime onnx"
            )
        config["model_operations"] = {"op_library_filename": [settings.op_library]}
    config["parameters"] = {key: {"string_value": text} for key, text in parameters.items()}
    return config


def max_batch_size(artifact: TritonArtifact, settings: TritonSettings) -> int:
    """Return the largest batch that Triton forms, in images."""
    if artifact.runtime == "onnx":
        return settings.max_batch or DEFAULT_BATCH
    largest = artifact.profile[2]
    if settings.max_batch > largest:
        raise InvalidValue(
            f"--max-batch is {settings.max_batch}; {artifact.file} takes at most {largest} images: build it "
            "with a larger --batch"
        )
    return settings.max_batch or largest


def preferred_batch_sizes(artifact: TritonArtifact, settings: TritonSettings, max_batch: int) -> list[int]:
    """Return the preferred batch sizes.

    By default an engine's best and largest batch; for ONNX files a quarter of the largest and the largest.
    """
    if settings.preferred:
        if max(settings.preferred) > max_batch:
            raise InvalidValue(
                f"--preferred has {max(settings.preferred)}; a batch has at most {max_batch} images"
            )
        return sorted(set(settings.preferred))
    best = artifact.profile[1] if artifact.runtime == "tensorrt" else max(1, max_batch // 4)
    return sorted({min(best, max_batch), max_batch})


def tensor_config(bundle: Bundle, which: str) -> dict[str, Any]:
    """Return the model's "input" or "output" without the batch dimension, which Triton adds."""
    spec = bundle.manifest[which]
    if not {"name", "dtype", "shape"} <= spec.keys() or spec["dtype"] != "float32" or len(spec["shape"]) < 2:
        raise BundleError(
            f"{bundle.path}/manifest.json describes the model's {which} as {spec}; expected its name, its "
            "shape and dtype float32"
        )
    return {"name": spec["name"], "data_type": "TYPE_FP32", "dims": [int(n) for n in spec["shape"][1:]]}


def model_parameters(bundle: Bundle, artifact: TritonArtifact) -> dict[str, str]:
    """Return the file's digest, origin and verdict as parameters, which Triton stores and reports."""
    values = {
        "file": artifact.file, "sha256": artifact.facts["sha256"], "bundle_sha256": bundle.manifest["sha256"],
        "model": bundle.manifest["model"], "precision": artifact.precision,
        "threat": f"{bundle.threat.norm} {bundle.threat.eps:g}", "verdict": worst_verdict(bundle, artifact),
    }  # fmt: skip
    for name in ("tensorrt", "compute_capability", "plugin", "plugin_library"):
        if artifact.facts.get(name):
            values[name] = artifact.facts[name]
    return {f"{PARAMETER_PREFIX}{name}": str(value) for name, value in values.items()}


def worst_verdict(bundle: Bundle, artifact: TritonArtifact) -> str:
    """Return the worst verdict in verify.json for this file's digest; "none" if it was not verified."""
    path = bundle.path / REPORT
    try:
        results = json.loads(path.read_text("utf-8"))["artifacts"] if path.is_file() else []
        verdicts = {result["verdict"] for result in results if result["sha256"] == artifact.facts["sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read ({error!r}): verify again, or remove it") from None
    return next((verdict for verdict in WORST_FIRST if verdict in verdicts), "none")


def _instance_group(artifact: TritonArtifact, settings: TritonSettings) -> dict[str, Any]:
    on_gpu = settings.device == "gpu" or (settings.device == "auto" and artifact.runtime == "tensorrt")
    if artifact.runtime == "tensorrt" and not on_gpu:
        raise InvalidValue(
            "--device is cpu, but an engine runs on a GPU: leave it out, or use --runtime onnx"
        )
    if settings.gpus and not on_gpu:
        raise InvalidValue("--gpus is given, but ONNX files run on the CPU by default: add --device gpu")
    group = {"count": settings.instances, "kind": "KIND_GPU" if on_gpu else "KIND_CPU"}
    return group | ({"gpus": list(settings.gpus)} if settings.gpus else {})


def _dynamic_batching(settings: TritonSettings, preferred: list[int]) -> dict[str, Any]:
    policy = {
        "timeout_action": "REJECT", "default_timeout_microseconds": round(settings.timeout * 1e6),
        "max_queue_size": settings.queue,
    }  # fmt: skip
    return {
        "preferred_batch_size": preferred, "max_queue_delay_microseconds": round(settings.max_delay * 1e3),
        "default_queue_policy": policy,
    }  # fmt: skip


def _warmup(input_config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return a warm-up request with black images."""
    tensor = {"data_type": input_config["data_type"], "dims": input_config["dims"], "zero_data": True}
    name = f"{size} black images" if size > 1 else "a black image"
    return {"name": name, "batch_size": size, "inputs": {input_config["name"]: tensor}}
