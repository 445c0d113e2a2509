"""Writes a bundle's network as one ONNX file of a precision, and lists it in the manifest."""

from __future__ import annotations

import json
from pathlib import Path

from robust_export.bundle import FILES, Bundle
from robust_export.errors import InvalidValue, unknown
from robust_export.export.calibration import Calibration, calibration_images
from robust_export.export.cast import cast_model
from robust_export.export.exporter import DEFAULT_OPSET, METADATA_PREFIX, OPSETS, check_file, to_onnx
from robust_export.export.half import HALVES
from robust_export.export.quantize import quantise
from robust_export.nn.models import load

BF16_OPSET = 22  # the first whose Conv takes bfloat16


def export_bundle(
    bundle: Bundle, opset: int | None = None, precision: str = "fp32", calibration: Calibration | None = None
) -> Path:
    """Write a bundle's network to model.onnx (float32) or model.<precision>.onnx, and list it.

    Args:
        opset: 20 by default, 22 for bf16.
        precision: "fp32", "fp16", "bf16" or "int8".
        calibration: of int8, the defaults of `Calibration` if None; None for the others.

    Raises:
        InvalidValue: for an opset that cannot be written, or a calibration of what needs none.
        UnsupportedModel: if the network cannot be exported, or its weights do not fit the precision.
        DataError: if the images of the calibration cannot be had.
    """
    if precision not in FILES:
        raise unknown("precision", precision, FILES)
    if calibration is not None and precision != "int8":
        raise InvalidValue(f"calibration was given for {precision}; only int8 is calibrated: leave it out")
    opset = _opset(opset, precision)
    recipe, network = bundle.recipe(), load(bundle)
    facts = {key: bundle.manifest[key] for key in ("name", "model", "labels", "preprocessing", "threat")}
    facts["version"] = bundle.manifest["provenance"]["versions"].get("robust-export")
    facts["weights_sha256"] = bundle.manifest["files"]["weights.safetensors"]["sha256"]
    model = to_onnx(
        network, recipe.model.image_size, recipe.model.in_chans, opset=opset, metadata=facts,
    )  # fmt: skip
    entry: dict[str, object] = {"precision": precision, "opset": opset}
    if precision in HALVES:
        model = cast_model(model, precision)
    elif precision == "int8":
        pixels, entry["calibration"] = calibration_images(bundle, network, calibration or Calibration())
        model = quantise(model, pixels)
    model.metadata_props.add(key=f"{METADATA_PREFIX}precision", value=json.dumps(precision))
    check_file(model, opset)
    (path,) = bundle.write({FILES[precision]: model.SerializeToString(deterministic=True)}, "onnx", **entry)
    return path


def _opset(asked: int | None, precision: str) -> int:
    """Return the opset to write, the precision's default if none was asked for."""
    if asked is None:
        return BF16_OPSET if precision == "bf16" else DEFAULT_OPSET
    if precision == "bf16" and asked < BF16_OPSET:
        raise InvalidValue(
            f"opset is {asked}; bf16 needs {BF16_OPSET} to {OPSETS.stop - 1}: Conv takes no bfloat16 before"
        )
    return asked
