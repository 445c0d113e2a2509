"""Request bodies and response parsing of the protocol, independent of the server's and the client's code."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from tests.serving.bundles import Array

HEADER_LENGTH = "Inference-Header-Content-Length"


def tensor(pixels: Array, **changes: Any) -> dict[str, Any]:
    """Return the JSON of an input; a change of None removes a key."""
    entry = {
        "name": "pixels",
        "datatype": "FP32",
        "shape": list(pixels.shape),
        "data": pixels.ravel().tolist(),
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


def as_json(pixels: Array, *outputs: str, **fields: Any) -> bytes:
    request: dict[str, Any] = {"inputs": [tensor(pixels)], **fields}
    if outputs:
        request["outputs"] = [{"name": name} for name in outputs]
    return json.dumps(request).encode()


def as_bytes(pixels: Array, *outputs: str) -> tuple[bytes, dict[str, str]]:
    """Return a body with binary tensors, and its headers; all outputs are requested as bytes."""
    raw = pixels.astype("<f4").tobytes()
    entry = tensor(pixels, data=None, parameters={"binary_data_size": len(raw)})
    request: dict[str, Any] = {"inputs": [entry], "parameters": {"binary_data_output": True}}
    if outputs:
        request["outputs"] = [{"name": name} for name in outputs]
    head = json.dumps(request).encode()
    return head + raw, {HEADER_LENGTH: str(len(head))}


def elements(*items: bytes) -> bytes:
    """Return BYTES data: each element after its length."""
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def read(content: bytes, headers: Any) -> dict[str, Any]:
    """Return the outputs of a response by name, as arrays or lists of texts."""
    split = int(headers.get(HEADER_LENGTH.lower(), len(content)))
    response, tail = json.loads(content[:split]), content[split:]
    outputs: dict[str, Any] = {}
    for entry in response["outputs"]:
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
        if entry["datatype"] == "FP32":
            values = np.array(values, np.float32).reshape(entry["shape"])
        outputs[entry["name"]] = values
    assert not tail
    return outputs
