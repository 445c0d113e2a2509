"""Requests of the protocol, written by hand, apart from the server and from the project's client."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from tests.serving.bundles import Array

LENGTH = "Inference-Header-Content-Length"


def tensor(pixels: Array, **changes: Any) -> dict[str, Any]:
    entry = {
        "name": "pixels",
        "datatype": "FP32",
        "shape": list(pixels.shape),
        "data": pixels.ravel().tolist(),
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


def as_json(pixels: Array, *outputs: str, **more: Any) -> bytes:
    asked: dict[str, Any] = {"inputs": [tensor(pixels)], **more}
    if outputs:
        asked["outputs"] = [{"name": name} for name in outputs]
    return json.dumps(asked).encode()


def as_bytes(pixels: Array, *outputs: str) -> tuple[bytes, dict[str, str]]:
    """Return a body and its headers; all outputs are asked for as bytes."""
    raw = pixels.astype("<f4").tobytes()
    entry = tensor(pixels, data=None, parameters={"binary_data_size": len(raw)})
    asked: dict[str, Any] = {"inputs": [entry], "parameters": {"binary_data_output": True}}
    if outputs:
        asked["outputs"] = [{"name": name} for name in outputs]
    head = json.dumps(asked).encode()
    return head + raw, {LENGTH: str(len(head))}


def elements(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def read(content: bytes, headers: Any) -> dict[str, Any]:
    """Return the outputs of an answer by name, as arrays or lists of texts."""
    split = int(headers.get(LENGTH.lower(), len(content)))
    answer, tail = json.loads(content[:split]), content[split:]
    found: dict[str, Any] = {}
    for entry in answer["outputs"]:
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            values: Any = entry["data"]
        elif entry["datatype"] == "FP32":
            values, tail = np.frombuffer(tail[:size], "<f4"), tail[size:]
        else:
            values, raw, tail = [], tail[:size], tail[size:]
            while raw:
                (length,) = struct.unpack_from("<I", raw)
                values, raw = [*values, raw[4 : 4 + length].decode()], raw[4 + length :]
        found[entry["name"]] = (
            np.array(values, np.float32).reshape(entry["shape"]) if entry["datatype"] == "FP32" else values
        )
    assert not tail
    return found
