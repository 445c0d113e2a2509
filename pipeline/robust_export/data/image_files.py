"""Decode image files to pixels, in the same way for training and serving (without torch)."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from robust_export.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")  # Pillow decodes others, some by running programs
MAX_PIXELS = 64_000_000  # of one image, against decompression bombs

Bytes = npt.NDArray[np.uint8]
"""uint8 pixels [C, H, W]."""


def open_image(source: Path | bytes, max_pixels: int | None = None) -> Image.Image:
    """Decode an image file completely and apply its EXIF orientation.

    Args:
        source: path or content of the file.
        max_pixels: limit for width times height, `MAX_PIXELS` by default.

    Raises:
        DataError: if its format is unknown, or it is truncated or too large; the message names the file.
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    name = str(source) if isinstance(source, Path) else f"an image of {len(source):,} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images, which are checked below
            with Image.open(
                source if isinstance(source, Path) else BytesIO(source), formats=FORMATS
            ) as image:
                if image.width * image.height > limit:
                    raise DataError(
                        f"{name} has {image.width} x {image.height} pixels; the limit is "
                        f"{limit:,}. Make it smaller."
                    )
                image.load()
                return ImageOps.exif_transpose(image)
    except DataError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise DataError(
            f"{name} cannot be decoded: {error}. Repair it, or take it out of the folder."
        ) from error


def to_bytes(image: Image.Image, size: int, in_chans: int) -> Bytes:
    """Return the image as uint8 [in_chans, size, size].

    The image is converted to RGB (3 channels) or grey (1); transparency is composed on black; 16 bits per
    channel are scaled to 8. The shorter side is resized to `size` (bilinear, antialiased), the longer one is
    cropped to its centre.

    Raises:
        DataError: if `in_chans` is neither 1 nor 3.
    """
    mode = {1: "L", 3: "RGB"}.get(in_chans)
    if mode is None:
        raise DataError(f"in_chans is {in_chans}; expected 1 (grey) or 3 (RGB)")
    opaque = _eight_bits(image)
    if opaque.has_transparency_data:
        rgba = opaque.convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    fitted = opaque.convert(mode)
    if fitted.size != (size, size):
        fitted = ImageOps.fit(fitted, (size, size), method=Image.Resampling.BILINEAR)
    array = np.asarray(fitted, dtype=np.uint8).reshape(size, size, in_chans)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit and float grey to 8 bits, which Pillow's conversion would clip; convert LAB to RGB."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        values[values == image.info.get("transparency", -1)] = 0
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8))
    return image.convert("RGB") if image.mode == "LAB" else image
