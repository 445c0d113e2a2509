"""The bytes of the Open Inference (V2) protocol, REST: requests to write, answers to read. No network.

Source: https://github.com/kserve/open-inference-protocol; for tensors as bytes, little-endian and row-major,
after the JSON, Triton's binary tensor data extension.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

import numpy as np
import pydantic_core
from pydantic import BaseModel, TypeAdapter, ValidationError

from robust_export.runtimes.classifier import Logits, Pixels

BINARY = "binary_tensor_data"  # the extension's name, in a server's metadata
LENGTH = "Inference-Header-Content-Length"  # bytes of the JSON that binary tensors follow
LABELS = "robust_export.labels"  # a parameter of a model: its labels, as the JSON that the exported file has
WORDS = 300  # characters of a server's words that are shown


class Tensor(BaseModel):
    """A tensor of an answer, or the signature of one, where a dimension that is free is -1."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None  # flat or nested

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {self.shape}"


class Metadata(BaseModel):
    """What a server says of a model."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: dict[str, Any] | None = None

    def labels(self) -> list[str] | None:
        """Return the labels of the logits, None where the server does not say.

        Raises:
            ValueError: if they are no JSON list of texts.
        """
        text = (self.parameters or {}).get(LABELS)
        try:
            return None if text is None else TypeAdapter(list[str]).validate_json(str(text))
        except ValidationError as error:
            raise ValueError(f"its {LABELS} are no JSON list of texts") from error


class Server(BaseModel):
    """What a server says of itself."""

    extensions: list[str] = []


class Answer(BaseModel):
    outputs: list[Tensor]


Kind = TypeVar("Kind", bound=BaseModel)


def parse(kind: type[Kind], content: bytes) -> Kind:
    """Return JSON as what it should be.

    Raises:
        ValueError: in one line, if it is something else.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def write_request(pixels: Pixels, input: str, output: str, binary: bool) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers that ask for one output, of float32 pixels [N, C, H, W]."""
    tensor: dict[str, Any] = {"name": input, "shape": list(pixels.shape), "datatype": "FP32"}
    wanted: dict[str, Any] = {"name": output}
    if not binary:
        tensor["data"] = pixels.ravel().tolist()  # as float64, whose text stands for the very same float32
        body = {"inputs": [tensor], "outputs": [wanted]}
        return json.dumps(body, separators=(",", ":")).encode(), {"Content-Type": "application/json"}
    raw = pixels.astype("<f4").tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    wanted["parameters"] = {"binary_data": True}
    header = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    return header + raw, {"Content-Type": "application/octet-stream", LENGTH: str(len(header))}


def read_logits(content: bytes, length: str | None, output: str) -> Logits:
    """Return an output of an answer, float32 of any shape, whichever way the server chose to send it.

    Args:
        content: the body.
        length: the header `LENGTH`, None where there is none.

    Raises:
        ValueError: in one line, if the answer is none, or is not what it says.
    """
    if length is not None and not (length.isdecimal() and int(length) <= len(content)):
        raise ValueError(f"{LENGTH} is {length[:20]}, of {len(content)} bytes")
    split = len(content) if length is None else int(length)
    answer, tail = parse(Answer, content[:split]), content[split:]
    for tensor in answer.outputs:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is not None and not (isinstance(size, int) and 0 <= size <= len(tail)):
            raise ValueError(f"{tensor.name} should have {size} bytes of data, but {len(tail)} are there")
        if tensor.name == output:
            return _values(tensor, None if size is None else tail[:size])
        tail = tail[size or 0 :]
    names = ", ".join(tensor.name for tensor in answer.outputs) or "none"
    raise ValueError(f"it has no output {output}; its outputs are {names}")


def _values(tensor: Tensor, raw: bytes | None) -> Logits:
    if tensor.datatype != "FP32":
        raise ValueError(f"output {tensor} is not FP32")
    if raw is not None:
        if len(raw) % 4:
            raise ValueError(f"{len(raw)} bytes are no FP32 data")
        values = np.frombuffer(raw, "<f4").astype(np.float32)
    else:
        try:
            with np.errstate(over="ignore"):
                values = np.array(tensor.data, np.float32)  # null, as some write NaN, is NaN
        except (TypeError, ValueError) as error:
            raise ValueError(f"the data of output {tensor} are no numbers") from error
    if values.size != math.prod(tensor.shape):
        raise ValueError(f"output {tensor} has {values.size} numbers")
    return values.reshape(tensor.shape)


def words(content: bytes) -> str:
    """Return, in one line, what an answer says went wrong: V2's `error`, others' `detail`, or its text."""
    try:
        answer = pydantic_core.from_json(content)
    except ValueError:
        answer = content.decode("utf-8", "replace")
    if isinstance(answer, dict):
        answer = answer.get("error") or answer.get("detail") or answer
    return clip(str(answer))


def clip(text: str) -> str:
    r"""Return a text of unknown origin as one line of printable characters, not too long.

    >>> clip("a server's\n\x1b[31mwords")
    "a server's [31mwords"
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= WORDS else text[:WORDS] + "..."
