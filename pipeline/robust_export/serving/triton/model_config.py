"""Triton's ModelConfig of a bundle's file: what config.pbtxt says.

The fields are those of Triton's model_config.proto; the tests parse what is written with the message that
NVIDIA's client has of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from robust_export.bundle import Bundle
from robust_export.errors import BundleError, InvalidValue
from robust_export.serving.triton.artifact_choice import MODEL_FILES, Chosen
from robust_export.serving.triton.settings import TritonSettings
from robust_export.serving.triton.text_format import Word, entries

DEFAULT_BATCH = 32  # images, for ONNX files, which take as many as there are
LABELS, REPORT = "labels.txt", "verify.json"
WORST_FIRST = ("fail", "undecided", "pass")
PLATFORMS = {"tensorrt": {"platform": "tensorrt_plan"}, "onnx": {"backend": "onnxruntime"}}


def model_config(
    bundle: Bundle, chosen: Chosen, settings: TritonSettings, known: Mapping[str, str]
) -> dict[str, Any]:
    """Return the ModelConfig as nested fields.

    Args:
        known: its parameters, of `facts`.

    Raises:
        InvalidValue: for a setting that the file does not allow.
        BundleError: if the manifest does not say what the model takes and gives.
    """
    largest = max_batch(chosen, settings)
    sizes = preferred(chosen, settings, largest)
    taken, given = tensor(bundle, "input"), tensor(bundle, "output")
    config: dict[str, Any] = {
        "name": bundle.name, **PLATFORMS[chosen.runtime], "max_batch_size": largest,
        "default_model_filename": MODEL_FILES[chosen.runtime],
        "input": taken, "output": given | {"label_filename": LABELS},
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": _instances(chosen, settings),
        "dynamic_batching": _batching(settings, sizes),
        "model_warmup": [_warmup(taken, size) for size in sorted({1, *sizes})],
    }  # fmt: skip
    if settings.op_library:
        if chosen.runtime != "onnx":
            raise InvalidValue("--op-library is of ONNX Runtime, which runs no engine: --runtime onnx")
        config["model_operations"] = {"op_library_filename": settings.op_library}
    config["parameters"] = entries({key: {"string_value": text} for key, text in known.items()})
    return config


def max_batch(chosen: Chosen, settings: TritonSettings) -> int:
    """Return the largest number of images that Triton makes one batch of."""
    if chosen.runtime == "onnx":
        return settings.max_batch or DEFAULT_BATCH
    largest = chosen.profile[2]
    if settings.max_batch > largest:
        raise InvalidValue(
            f"--max-batch is {settings.max_batch}; {chosen.file} takes {largest} images at most: build it "
            "with a larger --batch"
        )
    return settings.max_batch or largest


def preferred(chosen: Chosen, settings: TritonSettings, largest: int) -> list[int]:
    """Return the sizes that batches had better have: an engine's best and its largest, a quarter and all."""
    if settings.preferred:
        if max(settings.preferred) > largest:
            raise InvalidValue(
                f"--preferred has {max(settings.preferred)}; a batch has {largest} images at most"
            )
        return sorted(set(settings.preferred))
    best = chosen.profile[1] if chosen.runtime == "tensorrt" else max(1, largest // 4)
    return sorted({min(best, largest), largest})


def tensor(bundle: Bundle, which: str) -> dict[str, Any]:
    """Return the model's input or output without its first dimension, which Triton adds."""
    said = bundle.manifest[which]
    if not {"name", "dtype", "shape"} <= said.keys() or said["dtype"] != "float32" or len(said["shape"]) < 2:
        raise BundleError(f"{bundle.path}/manifest.json does not describe the model's {which}: {said}")
    return {"name": said["name"], "data_type": Word("TYPE_FP32"), "dims": [int(n) for n in said["shape"][1:]]}


def facts(bundle: Bundle, chosen: Chosen) -> dict[str, str]:
    """Return what is known of the file, as parameters that Triton keeps and shows."""
    known = {
        "file": chosen.file, "sha256": chosen.facts["sha256"], "bundle_sha256": bundle.manifest["sha256"],
        "model": bundle.manifest["model"], "precision": chosen.precision,
        "threat": f"{bundle.threat.norm} {bundle.threat.eps:g}", "verdict": verdict(bundle, chosen),
    }  # fmt: skip
    for name in ("tensorrt", "compute_capability", "plugin", "plugin_library"):
        if chosen.facts.get(name):
            known[name] = chosen.facts[name]
    return {f"robust_export.{name}": str(text) for name, text in known.items()}


def verdict(bundle: Bundle, chosen: Chosen) -> str:
    """Return the worst verdict of the verifications of this very file, "none" where there is none."""
    path = bundle.path / REPORT
    try:
        artifacts = json.loads(path.read_text("utf-8"))["artifacts"] if path.is_file() else []
        found = {one["verdict"] for one in artifacts if one["sha256"] == chosen.facts["sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read ({error!r}): verify again, or remove it") from None
    return next((word for word in WORST_FIRST if word in found), "none")


def _instances(chosen: Chosen, settings: TritonSettings) -> dict[str, Any]:
    on_gpu = settings.device == "gpu" or (settings.device == "auto" and chosen.runtime == "tensorrt")
    if chosen.runtime == "tensorrt" and not on_gpu:
        raise InvalidValue("--device is cpu; an engine runs on a GPU: leave it out, or --runtime onnx")
    if settings.gpus and not on_gpu:
        raise InvalidValue("--gpus were given, and ONNX files run on the CPU by default: add --device gpu")
    group = {"count": settings.instances, "kind": Word("KIND_GPU" if on_gpu else "KIND_CPU")}
    return group | ({"gpus": list(settings.gpus)} if settings.gpus else {})


def _batching(settings: TritonSettings, sizes: list[int]) -> dict[str, Any]:
    policy = {
        "timeout_action": Word("REJECT"), "default_timeout_microseconds": round(settings.timeout * 1e6),
        "max_queue_size": settings.queue,
    }  # fmt: skip
    delay = round(settings.max_delay * 1e3)
    return {
        "preferred_batch_size": sizes, "max_queue_delay_microseconds": delay, "default_queue_policy": policy,
    }  # fmt: skip


def _warmup(taken: dict[str, Any], size: int) -> dict[str, Any]:
    black = {"data_type": taken["data_type"], "dims": taken["dims"], "zero_data": True}
    return {
        "name": f"{size} black images" if size > 1 else "a black image", "batch_size": size,
        "inputs": entries({taken["name"]: black}),
    }  # fmt: skip
