"""The bodies of REST: requests to read, answers to write; JSON, and tensors as bytes after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field

from robust_export.errors import reason
from robust_export.runtimes.classifier import Logits
from robust_export.runtimes.open_inference import HEADER_LENGTH, one_line, parse_json
from robust_export.serving.request_error import Refused
from robust_export.serving.tensors import Given, Query, Wanted, to_elements

Parameters = dict[str, Any] | None


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)  # keys that are not known are left alone: extensions have them


class _Input(_Strict):
    name: str
    datatype: str
    shape: Annotated[list[int], Field(max_length=16)]
    parameters: Parameters = None
    data: list[Any] | None = None


class _Output(_Strict):
    name: str
    parameters: Parameters = None


class _Request(_Strict):
    id: Annotated[str, Field(max_length=256)] = ""
    parameters: Parameters = None
    inputs: Annotated[list[_Input], Field(max_length=16)]
    outputs: Annotated[list[_Output], Field(max_length=16)] = []


def read_request(body: bytes | bytearray, length: str | None) -> Query:
    """Return what the body of a request asks for.

    Args:
        length: the header `HEADER_LENGTH`, bytes of the JSON that binary tensors follow; None where it is all JSON.

    Raises:
        Refused: if the body is no request, or not what it says.
    """
    split = len(body)
    if length is not None:
        if not (length.isascii() and length.isdecimal() and len(length) < 20 and int(length) <= len(body)):
            raise Refused(400, f"{HEADER_LENGTH} is {one_line(length[:20])}; the body has {len(body)} bytes")
        split = int(length)
    try:
        request = parse_json(_Request, bytes(memoryview(body)[:split]))
        request.id.encode()
    except ValueError as error:
        raise Refused(400, f"the body is no V2 request: {one_line(reason(error))}") from error
    inputs = _inputs(request.inputs, memoryview(body)[split:])
    binary = _flag(request.parameters, "binary_data_output", False)
    outputs = [Wanted(out.name, _flag(out.parameters, "binary_data", binary)) for out in request.outputs]
    return Query(inputs, outputs or [Wanted("", binary)], request.id)


def _inputs(tensors: Sequence[_Input], tail: memoryview) -> list[Given]:
    found = []
    for tensor in tensors:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            found.append(Given(tensor.name, tensor.datatype, tensor.shape, items=tensor.data))
            continue
        given = Given(
            tensor.name, tensor.datatype, tensor.shape, raw=tail[: size if type(size) is int else 0]
        )
        if type(size) is not int or not 0 <= size <= len(tail):
            raise Refused(
                400, f"binary_data_size of {given} is {one_line(str(size)[:20])}, of {len(tail)} bytes"
            )
        if tensor.data is not None:
            raise Refused(400, f"{given} has both data and binary_data_size")
        found.append(given)
        tail = tail[size:]
    if tail:
        raise Refused(400, f"{len(tail)} bytes after the JSON belong to no tensor")
    return found


def _flag(parameters: Parameters, name: str, default: bool) -> bool:
    value = (parameters or {}).get(name, default)
    if not isinstance(value, bool):
        raise Refused(400, f"{name} is {one_line(str(value)[:20])}; expected true or false")
    return value


@dataclass(frozen=True)
class Output:
    """A tensor of an answer: FP32, or BYTES where its values are texts."""

    name: str
    values: Logits | list[str]
    binary: bool

    @property
    def shape(self) -> list[int]:
        return [len(self.values)] if isinstance(self.values, list) else list(self.values.shape)

    @property
    def datatype(self) -> str:
        return "BYTES" if isinstance(self.values, list) else "FP32"

    def raw(self) -> bytes:
        """Return the values as V2 writes them in bytes."""
        return (
            to_elements(self.values) if isinstance(self.values, list) else self.values.astype("<f4").tobytes()
        )

    def items(self) -> list[Any]:
        """Return the values as one row."""
        return self.values if isinstance(self.values, list) else self.values.ravel().tolist()


def write_answer(
    model: str, version: str, id: str, outputs: Sequence[Output]
) -> tuple[bytes, dict[str, str]]:
    """Return the body of an answer and its headers. What is not finite is null in JSON."""
    entries: list[dict[str, Any]] = []
    tail = []
    for output in outputs:
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if output.binary:
            tail.append(output.raw())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = output.items()
        entries.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if id:
        answer["id"] = id
    head = pydantic_core.to_json(answer, inf_nan_mode="null")
    if not tail:
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *tail]), headers
