"""Tensors of a request, whichever protocol brought them: checked, and turned into pixels or images.

Whatever is said of a tensor is compared with what was sent before anything of its size is made.
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
from robust_export.serving.request_error import Refused

PIXELS, IMAGE = "pixels", "image"  # the names of the inputs, of which a request has one
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # how PNG and JPEG files begin


@dataclass(frozen=True)
class Given:
    """A tensor as it was sent: as bytes (`raw`), or as a list of elements, flat or nested (`items`)."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes | memoryview | None = None
    items: Sequence[Any] | None = None

    def __str__(self) -> str:
        dims = ", ".join(map(str, self.shape[:8])) + (", ..." if len(self.shape) > 8 else "")
        return one_line(f"{self.name[:50]} {self.datatype[:20]} [{dims}]")


@dataclass(frozen=True)
class Wanted:
    """An output that was asked for, and whether as bytes."""

    name: str
    binary: bool


@dataclass(frozen=True)
class Query:
    """A request for an inference. No `outputs` stand for the logits.

    Whoever has read the inputs takes them away, so that nothing is held twice while a batch is waited for.
    """

    inputs: list[Given]
    outputs: Sequence[Wanted]
    id: str = ""


def the_input(query: Query) -> Given:
    """Return the one input of a request."""
    names = [tensor.name for tensor in query.inputs]
    if len(names) != 1 or names[0] not in (PIXELS, IMAGE):
        found = one_line(", ".join(name[:50] for name in names[:8])) or "none"
        raise Refused(400, f"the inputs are {found}; expected one, either {PIXELS} or {IMAGE}")
    return query.inputs[0]


def read_pixels(tensor: Given, plane: tuple[int, int, int], limit: int) -> Pixels:
    """Return FP32 [N, C, H, W], N of at least 1, in [0, 1].

    Args:
        limit: bytes that the pixels may have.

    Raises:
        Refused: if the tensor is something else.
    """
    if tensor.datatype != "FP32" or len(tensor.shape) != 4 or tuple(tensor.shape[1:]) != plane:
        dims = ", ".join(map(str, plane))
        raise Refused(400, f"the input is {tensor}; expected {PIXELS} FP32 [N, {dims}]")
    images = check_count(tensor, plane, limit)
    size = images * math.prod(plane)
    if tensor.raw is not None:
        if len(tensor.raw) != 4 * size:
            raise Refused(400, f"{tensor} has {len(tensor.raw)} bytes of data; expected {4 * size}")
        values = np.frombuffer(tensor.raw, "<f4")
    else:
        values = _numbers(tensor, size)
    if not (values.min() >= 0 and values.max() <= 1):  # which NaN is not either
        raise Refused(400, f"{PIXELS} has values that are not in [0, 1]; expected pixels divided by 255")
    aligned: Pixels = np.require(values, np.float32, ["C", "A"])  # after JSON of any length, bytes may not be
    return aligned.reshape(tensor.shape)


def check_count(tensor: Given, plane: tuple[int, int, int], limit: int) -> int:
    """Return N; refuse none, and more than have room in `limit` bytes as float32 pixels."""
    images = tensor.shape[0]
    most = max(1, limit // (4 * math.prod(plane)))
    if images < 1:
        raise Refused(400, f"the input is {tensor}; expected at least one image")
    if images > most:
        raise Refused(413, f"the input is {tensor}; expected at most {most} images in a request")
    return images


def read_images(tensor: Given, plane: tuple[int, int, int], limit: int) -> list[bytes]:
    """Return the encoded images of BYTES [N], each of which begins as a PNG or JPEG file does."""
    if tensor.datatype != "BYTES" or len(tensor.shape) != 1:
        raise Refused(400, f"the input is {tensor}; expected {IMAGE} BYTES [N]")
    images = check_count(tensor, plane, limit)
    if tensor.raw is not None:
        files = _elements(tensor, images)
    else:
        files = [_encoded(item) for item in _flat(tensor, images)]
    for number, file in enumerate(files):
        if not file.startswith(MAGIC):
            raise Refused(400, f"{IMAGE} {number} is no PNG or JPEG file")
    return files


def decode(files: Sequence[bytes], plane: tuple[int, int, int]) -> Pixels:
    """Return images as training sees them, float32 [N, C, H, W].

    Raises:
        Refused: if one is damaged, or all together have more than `MAX_PIXELS`.
    """
    channels, size, _ = plane
    pixels = np.empty((len(files), *plane), np.float32)
    left = MAX_PIXELS
    for number, file in enumerate(files):
        try:
            image = open_image(file, left)
            left -= image.width * image.height
            pixels[number] = to_bytes(image, size, channels)
        except DataError as error:
            raise Refused(400, f"{IMAGE} {number}: {one_line(reason(error))}") from error
    pixels /= 255
    return pixels


def _numbers(tensor: Given, size: int) -> Pixels:
    items = _flat(tensor, size)
    if not set(map(type, items)) <= {float, int}:
        raise Refused(400, f"the data of {tensor} are not all numbers")
    try:
        with np.errstate(over="ignore"):
            return np.array(items, np.float64).astype(np.float32)
    except OverflowError:
        raise Refused(400, f"{PIXELS} has values that are not in [0, 1]") from None


def _flat(tensor: Given, size: int) -> Sequence[Any]:
    """Return the data as one row, if they are one, or nested as the shape says."""
    if tensor.items is None:
        raise Refused(400, f"{tensor} has no data")
    items = tensor.items
    if items and isinstance(items[0], list):
        for inner in tensor.shape[1:]:
            if not all(isinstance(row, list) and len(row) == inner for row in items):
                raise Refused(400, f"the data of {tensor} are not nested as its shape says")
            items = list(itertools.chain.from_iterable(items))
    if len(items) != size:
        raise Refused(400, f"{tensor} has {len(items)} elements; expected {size}")
    return items


def _encoded(item: Any) -> bytes:
    """Return a file that came as bytes (gRPC), or as base64 (JSON)."""
    if isinstance(item, bytes):
        return item
    try:
        return base64.b64decode(item, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Refused(400, f"{IMAGE} has an element that is no base64 text") from None


def _elements(tensor: Given, count: int) -> list[bytes]:
    """Return the elements of BYTES as bytes: of each its length, 4 bytes, little-endian, and itself."""
    raw, place = memoryview(tensor.raw or b""), 0
    found: list[bytes] = []
    while place < len(raw):
        length = struct.unpack_from("<I", raw, place)[0] if place + 4 <= len(raw) else len(raw)
        place += 4 + length
        if place > len(raw) or len(found) == count:
            raise Refused(400, f"{tensor} has data that are not {count} elements, each after its length")
        found.append(bytes(raw[place - length : place]))
    if len(found) != count:
        raise Refused(400, f"{tensor} has {len(found)} elements")
    return found


def to_elements(texts: Sequence[str]) -> bytes:
    """Return texts as the data of BYTES."""
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
