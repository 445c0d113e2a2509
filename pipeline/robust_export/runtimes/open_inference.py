"""Encode requests and decode responses of the Open Inference (V2) protocol over REST, without networking.

Source: https://github.com/kserve/open-inference-protocol. Tensors may also be sent as bytes after the JSON,
little-endian and row-major: Triton's binary tensor data extension.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

import numpy as np
import pydantic_core
from pydantic import BaseModel, TypeAdapter, ValidationError

from robust_export.runtimes.classifier import Logits, Pixels

BINARY_EXTENSION = "binary_tensor_data"  # its name in a server's metadata
HEADER_LENGTH = "Inference-Header-Content-Length"  # header: bytes of JSON before the binary tensors
LABELS_PARAMETER = "robust_export.labels"  # of a model's metadata: a JSON list of strings
MAX_SHOWN = 300  # characters of a server's text in our messages


class Tensor(BaseModel):
    """A tensor of a response, or the specification of one, in which a free dimension is -1."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None  # flat or nested

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {self.shape}"


class Metadata(BaseModel):
    """The metadata of a served model."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: dict[str, Any] | None = None

    def labels(self) -> list[str] | None:
        """Return the labels of the logits, None if the metadata has none.

        Raises:
            ValueError: if they are not a JSON list of strings.
        """
        text = (self.parameters or {}).get(LABELS_PARAMETER)
        try:
            return None if text is None else TypeAdapter(list[str]).validate_json(str(text))
        except ValidationError as error:
            raise ValueError(f"its {LABELS_PARAMETER} is not a JSON list of strings") from error


class Server(BaseModel):
    """The metadata of a server."""

    extensions: list[str] = []


class Response(BaseModel):
    """The response to an inference request."""

    outputs: list[Tensor]


Schema = TypeVar("Schema", bound=BaseModel)


def parse_json(schema: type[Schema], content: bytes) -> Schema:
    """Return JSON as an instance of `schema`.

    Raises:
        ValueError: if it does not fit, with a message of one line.
    """
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        location = ".".join(map(str, first["loc"]))
        raise ValueError(f"{location}: {first['msg']}" if location else first["msg"]) from error


def write_request(pixels: Pixels, input: str, output: str, binary: bool) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of an inference request.

    Args:
        pixels: float32 [N, C, H, W].
        input: the name of the model's input.
        output: the name of the output to return.
        binary: send the tensor as bytes after the JSON.
    """
    tensor: dict[str, Any] = {"name": input, "shape": list(pixels.shape), "datatype": "FP32"}
    requested: dict[str, Any] = {"name": output}
    if not binary:
        tensor["data"] = pixels.ravel().tolist()  # float64: its decimal text parses to the same float32
        body = {"inputs": [tensor], "outputs": [requested]}
        return json.dumps(body, separators=(",", ":")).encode(), {"Content-Type": "application/json"}
    raw = pixels.astype("<f4").tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    requested["parameters"] = {"binary_data": True}
    header = json.dumps({"inputs": [tensor], "outputs": [requested]}).encode()
    return header + raw, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}


def read_logits(content: bytes, header_length: str | None, output: str) -> Logits:
    """Return an output of a response, sent as JSON or as bytes: float32 of any shape.

    Args:
        content: the response's body.
        header_length: the value of the header `HEADER_LENGTH`, None if it is absent.
        output: the output's name.

    Raises:
        ValueError: if the body is not a valid response, with a message of one line.
    """
    if header_length is not None and not (header_length.isdecimal() and int(header_length) <= len(content)):
        raise ValueError(f"{HEADER_LENGTH} is {header_length[:20]}, but the body has {len(content)} bytes")
    split = len(content) if header_length is None else int(header_length)
    response, tail = parse_json(Response, content[:split]), content[split:]
    for tensor in response.outputs:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is not None and not (isinstance(size, int) and 0 <= size <= len(tail)):
            raise ValueError(f"{tensor.name} should have {size} bytes of data, but {len(tail)} are left")
        if tensor.name == output:
            return _values(tensor, None if size is None else tail[:size])
        tail = tail[size or 0 :]
    names = ", ".join(tensor.name for tensor in response.outputs) or "none"
    raise ValueError(f"it has no output {output}; its outputs are {names}")


def _values(tensor: Tensor, raw: bytes | None) -> Logits:
    if tensor.datatype != "FP32":
        raise ValueError(f"output {tensor} is not FP32")
    if raw is not None:
        if len(raw) % 4:
            raise ValueError(f"{len(raw)} bytes are not FP32 data: expected a multiple of 4")
        values = np.frombuffer(raw, "<f4").astype(np.float32)
    else:
        try:
            with np.errstate(over="ignore"):
                values = np.array(tensor.data, np.float32)  # null, which some servers write for NaN, is NaN
        except (TypeError, ValueError) as error:
            raise ValueError(f"the data of output {tensor} are not numbers") from error
    if values.size != math.prod(tensor.shape):
        raise ValueError(f"output {tensor} has {values.size} numbers")
    return values.reshape(tensor.shape)


def error_text(content: bytes) -> str:
    """Return, in one line, the error of a response: `error` (V2), `detail` (others), or the whole text."""
    try:
        response = pydantic_core.from_json(content)
    except ValueError:
        response = content.decode("utf-8", "replace")
    if isinstance(response, dict):
        response = response.get("error") or response.get("detail") or response
    return one_line(str(response))


def one_line(text: str) -> str:
    r"""Return an untrusted text as one line of printable characters, cut after MAX_SHOWN.

    >>> one_line("a server's\n\x1b[31mwords")
    "a server's [31mwords"
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
