"""Request and response bodies of REST: JSON, optionally followed by tensors as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field

from robust_export.errors import reason
from robust_export.runtimes.classifier import Logits
from robust_export.runtimes.open_inference import HEADER_LENGTH, one_line, parse_json
from robust_export.serving.request_error import RequestError
from robust_export.serving.tensors import InferenceRequest, RequestedOutput, RequestTensor, join_elements

Parameters = dict[str, Any] | None


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)  # no type conversion; unknown keys are ignored, as V2 asks


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


def read_request(body: bytes | bytearray, header_length: str | None) -> InferenceRequest:
    """Parse the body of an inference request.

    Args:
        header_length: the HTTP header `HEADER_LENGTH`, bytes of the JSON that precedes the binary tensors;
            None if the body is JSON only.

    Raises:
        RequestError: if the body is not a valid request.
    """
    json_size = len(body)
    if header_length is not None:
        if not _is_size(header_length, len(body)):
            received = one_line(header_length[:20])
            raise RequestError(400, f"{HEADER_LENGTH} is {received}; the body has {len(body)} bytes")
        json_size = int(header_length)
    try:
        request = parse_json(_Request, bytes(memoryview(body)[:json_size]))
        request.id.encode()  # fails on unpaired surrogates, which no response can hold
    except ValueError as error:
        raise RequestError(400, f"the body is not a V2 request: {one_line(reason(error))}") from error
    inputs = _request_tensors(request.inputs, memoryview(body)[json_size:])
    binary = _boolean(request.parameters, "binary_data_output", False)
    outputs = [
        RequestedOutput(out.name, _boolean(out.parameters, "binary_data", binary)) for out in request.outputs
    ]
    return InferenceRequest(inputs, outputs or [RequestedOutput("", binary)], request.id)


def _is_size(text: str, limit: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= limit


def _request_tensors(inputs: Sequence[_Input], tail: memoryview) -> list[RequestTensor]:
    """Return the inputs; those with `binary_data_size` take their data from `tail`, in order."""
    tensors = []
    for entry in inputs:
        size = (entry.parameters or {}).get("binary_data_size")
        if size is None:
            tensors.append(RequestTensor(entry.name, entry.datatype, entry.shape, items=entry.data))
            continue
        raw = tail[: size if type(size) is int else 0]
        tensor = RequestTensor(entry.name, entry.datatype, entry.shape, raw=raw)
        if type(size) is not int or not 0 <= size <= len(tail):
            received = one_line(str(size)[:20])
            raise RequestError(
                400, f"binary_data_size of {tensor} is {received}; {len(tail)} bytes follow the JSON"
            )
        if entry.data is not None:
            raise RequestError(400, f"{tensor} has both data and binary_data_size; expected one of them")
        tensors.append(tensor)
        tail = tail[size:]
    if tail:
        raise RequestError(400, f"{len(tail)} bytes after the JSON belong to no tensor")
    return tensors


def _boolean(parameters: Parameters, name: str, default: bool) -> bool:
    value = (parameters or {}).get(name, default)
    if not isinstance(value, bool):
        raise RequestError(400, f"{name} is {one_line(str(value)[:20])}; expected true or false")
    return value


@dataclass(frozen=True)
class ResponseTensor:
    """An output tensor: FP32 logits or probabilities [N, K], or BYTES texts [N]."""

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
        """Return the values as V2 binary data."""
        if isinstance(self.values, list):
            return join_elements(self.values)
        return self.values.astype("<f4").tobytes()

    def items(self) -> list[Any]:
        """Return the values as a flat list."""
        return self.values if isinstance(self.values, list) else self.values.ravel().tolist()


def write_response(
    model: str, version: str, id: str, outputs: Sequence[ResponseTensor]
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a response. Infinity and NaN become null in JSON."""
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
    response: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if id:
        response["id"] = id
    head = pydantic_core.to_json(response, inf_nan_mode="null")
    if not tail:
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *tail]), headers
