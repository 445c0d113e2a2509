"""Write a bundle's network as an ONNX file, and list it in the manifest."""

from __future__ import annotations

import json
from pathlib import Path

from robust_export.bundle import ONNX_FILES, Bundle
from robust_export.errors import InvalidValue, unknown
from robust_export.export.calibration import Calibration, calibration_images
from robust_export.export.cast import cast_model
from robust_export.export.exporter import DEFAULT_OPSET, METADATA_PREFIX, OPSETS, check_exported, to_onnx
from robust_export.export.half import HALF_TYPES
from robust_export.export.quantize import quantize
from robust_export.nn.load import load

BF16_OPSET = 22  # the first whose Conv allows bfloat16


def export_bundle(
    bundle: Bundle, opset: int | None = None, precision: str = "fp32", calibration: Calibration | None = None
) -> Path:
    """Write a bundle's network to model.onnx (fp32) or model.<precision>.onnx, and return the path.

    Args:
        opset: None is 20, or 22 for bf16.
        precision: "fp32", "fp16", "bf16" or "int8".
        calibration: for int8 only; None is `Calibration()`.

    Raises:
        InvalidValue: for an opset that cannot be written, or a calibration for another precision than int8.
        UnsupportedModel: if the network cannot be exported, or a weight exceeds the precision's range.
        DataError: if the calibration images cannot be loaded.
    """
    if precision not in ONNX_FILES:
        raise unknown("precision", precision, ONNX_FILES)
    if calibration is not None and precision != "int8":
        raise InvalidValue(f"calibration was given for {precision}; only int8 is calibrated; leave it out")
    opset = _opset(opset, precision)
    recipe, network = bundle.recipe(), load(bundle)
    facts = {key: bundle.manifest[key] for key in ("name", "model", "labels", "preprocessing", "threat")}
    facts["version"] = bundle.manifest["provenance"]["versions"].get("robust-export")
    facts["weights_sha256"] = bundle.manifest["files"]["weights.safetensors"]["sha256"]
    model = to_onnx(
        network, recipe.model.image_size, recipe.model.in_chans, opset=opset, metadata=facts,
    )  # fmt: skip
    entry: dict[str, object] = {"precision": precision, "opset": opset}
    if precision in HALF_TYPES:
        model = cast_model(model, precision)
    elif precision == "int8":
        pixels, entry["calibration"] = calibration_images(bundle, network, calibration or Calibration())
        model = quantize(model, pixels)
    model.metadata_props.add(key=f"{METADATA_PREFIX}precision", value=json.dumps(precision))
    check_exported(model, opset)
    (path,) = bundle.write(
        {ONNX_FILES[precision]: model.SerializeToString(deterministic=True)}, "onnx", **entry
    )
    return path


def _opset(requested: int | None, precision: str) -> int:
    """Return the opset to write; None is the precision's default."""
    if requested is None:
        return BF16_OPSET if precision == "bf16" else DEFAULT_OPSET
    if precision == "bf16" and requested < BF16_OPSET:
        raise InvalidValue(
            f"opset is {requested}; bf16 needs {BF16_OPSET} to {OPSETS.stop - 1}, whose Conv has bfloat16"
        )
    return requested
