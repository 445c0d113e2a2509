"""Input tensors of a request (either protocol): validation, and conversion to pixels or encoded images.

The declared shape is compared with the data before anything of that size is allocated.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robust_export.data.image_files import MAX_PIXELS, open_image, to_bytes
from robust_export.errors import DataError, reason
from robust_export.runtimes.classifier import Pixels
from robust_export.runtimes.open_inference import one_line
from robust_export.serving.request_error import RequestError

PIXELS, IMAGE = "pixels", "image"  # names of the two inputs; a request has one of them
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # first bytes of PNG and JPEG files


@dataclass(frozen=True)
class RequestTensor:
    """An input tensor as sent: either bytes (`raw`) or a list of elements, flat or nested (`items`)."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes | memoryview | None = None
    items: Sequence[Any] | None = None

    def __str__(self) -> str:
        dims = ", ".join(map(str, self.shape[:8])) + (", ..." if len(self.shape) > 8 else "")
        return one_line(f"{self.name[:50]} {self.datatype[:20]} [{dims}]")


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client asked for; `binary`: as bytes instead of JSON."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferenceRequest:
    """Inputs and requested outputs; an output without a name stands for the logits.

    The service clears `inputs` once they are decoded, so that a waiting request holds its data only once.
    """

    inputs: list[RequestTensor]
    outputs: Sequence[RequestedOutput]
    id: str = ""


def single_input(request: InferenceRequest) -> RequestTensor:
    """Return the request's only input, `pixels` or `image`.

    Raises:
        RequestError: if it has other inputs.
    """
    names = [tensor.name for tensor in request.inputs]
    if len(names) != 1 or names[0] not in (PIXELS, IMAGE):
        received = one_line(", ".join(name[:50] for name in names[:8])) or "none"
        raise RequestError(400, f"the inputs are {received}; expected one, either {PIXELS} or {IMAGE}")
    return request.inputs[0]


def read_pixels(tensor: RequestTensor, input_shape: tuple[int, int, int], max_bytes: int) -> Pixels:
    """Return float32 pixels [N, C, H, W], N >= 1, in [0, 1].

    Args:
        input_shape: (C, H, W).
        max_bytes: largest size of the pixels.

    Raises:
        RequestError: if the tensor is anything else.
    """
    if tensor.datatype != "FP32" or len(tensor.shape) != 4 or tuple(tensor.shape[1:]) != input_shape:
        dims = ", ".join(map(str, input_shape))
        raise RequestError(400, f"the input is {tensor}; expected {PIXELS} FP32 [N, {dims}]")
    images = check_image_count(tensor, input_shape, max_bytes)
    size = images * math.prod(input_shape)
    if tensor.raw is not None:
        if len(tensor.raw) != 4 * size:
            raise RequestError(400, f"{tensor} has {len(tensor.raw)} bytes of data; expected {4 * size}")
        values = np.frombuffer(tensor.raw, "<f4")
    else:
        values = _to_floats(tensor, size)
    if not (values.min() >= 0 and values.max() <= 1):  # false for NaN as well
        raise RequestError(400, f"{PIXELS} has values that are not in [0, 1]; expected pixels divided by 255")
    aligned: Pixels = np.require(values, np.float32, ["C", "A"])  # bytes after JSON may be misaligned
    return aligned.reshape(tensor.shape)


def check_image_count(tensor: RequestTensor, input_shape: tuple[int, int, int], max_bytes: int) -> int:
    """Return the number of images N.

    Raises:
        RequestError: if N < 1, or N images take more than `max_bytes` as float32 pixels.
    """
    images = tensor.shape[0]
    limit = max(1, max_bytes // (4 * math.prod(input_shape)))
    if images < 1:
        raise RequestError(400, f"the input is {tensor}; expected at least one image")
    if images > limit:
        raise RequestError(413, f"the input is {tensor}; expected at most {limit} images per request")
    return images


def read_images(tensor: RequestTensor, input_shape: tuple[int, int, int], max_bytes: int) -> list[bytes]:
    """Return the encoded images of a BYTES [N] tensor, each of which starts like a PNG or JPEG file.

    Raises:
        RequestError: if the tensor is anything else.
    """
    if tensor.datatype != "BYTES" or len(tensor.shape) != 1:
        raise RequestError(400, f"the input is {tensor}; expected {IMAGE} BYTES [N]")
    images = check_image_count(tensor, input_shape, max_bytes)
    if tensor.raw is not None:
        files = _split_elements(tensor, images)
    else:
        files = [_decode_base64(item) for item in _flatten(tensor, images)]
    for number, file in enumerate(files):
        if not file.startswith(SIGNATURES):
            raise RequestError(400, f"{IMAGE} {number} is neither a PNG nor a JPEG file")
    return files


def decode_images(files: Sequence[bytes], input_shape: tuple[int, int, int]) -> Pixels:
    """Decode, crop and resize images as in training; return float32 pixels [N, C, H, W] in [0, 1].

    Raises:
        RequestError: if an image is damaged, or all together have more than `MAX_PIXELS` pixels.
    """
    channels, size, _ = input_shape
    pixels = np.empty((len(files), *input_shape), np.float32)
    remaining = MAX_PIXELS
    for number, file in enumerate(files):
        try:
            image = open_image(file, remaining)
            remaining -= image.width * image.height
            pixels[number] = to_bytes(image, size, channels)
        except DataError as error:
            raise RequestError(400, f"{IMAGE} {number}: {one_line(reason(error))}") from error
    pixels /= 255
    return pixels


def _to_floats(tensor: RequestTensor, size: int) -> Pixels:
    items = _flatten(tensor, size)
    if not set(map(type, items)) <= {float, int}:
        raise RequestError(400, f"the data of {tensor} are not all numbers")
    try:
        with np.errstate(over="ignore"):
            return np.array(items, np.float64).astype(np.float32)
    except OverflowError:
        raise RequestError(400, f"{PIXELS} has values that are not in [0, 1]") from None


def _flatten(tensor: RequestTensor, size: int) -> Sequence[Any]:
    """Return the elements as a flat list of `size`; nested lists must match the shape."""
    if tensor.items is None:
        raise RequestError(400, f"{tensor} has no data")
    items = tensor.items
    if items and isinstance(items[0], list):
        for length in tensor.shape[1:]:
            if not all(isinstance(row, list) and len(row) == length for row in items):
                raise RequestError(400, f"the data of {tensor} are not nested as its shape says")
            items = list(itertools.chain.from_iterable(items))
    if len(items) != size:
        raise RequestError(400, f"{tensor} has {len(items)} elements; expected {size}")
    return items


def _decode_base64(item: Any) -> bytes:
    """Return a file sent as bytes (gRPC) or as base64 text (JSON)."""
    if isinstance(item, bytes):
        return item
    try:
        return base64.b64decode(item, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise RequestError(400, f"{IMAGE} has an element that is not base64 text") from None


def _split_elements(tensor: RequestTensor, count: int) -> list[bytes]:
    """Return the elements of BYTES data: each is its length (4 bytes, little-endian), then its content."""
    raw, position = memoryview(tensor.raw or b""), 0
    elements: list[bytes] = []
    while position < len(raw):
        length = struct.unpack_from("<I", raw, position)[0] if position + 4 <= len(raw) else len(raw)
        position += 4 + length
        if position > len(raw) or len(elements) == count:
            raise RequestError(400, f"the data of {tensor} are not {count} elements, each after its length")
        elements.append(bytes(raw[position - length : position]))
    if len(elements) != count:
        raise RequestError(400, f"{tensor} has {len(elements)} elements; expected {count}")
    return elements


def join_elements(texts: Sequence[str]) -> bytes:
    """Return texts as BYTES data."""
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
