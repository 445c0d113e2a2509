"""From an image file to pixels, the one way that training and serving both use (no torch here)."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from robust_export.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")  # Pillow knows more, some by running programs
MAX_PIXELS = 64_000_000  # of one image; more is a decompression bomb or a mistake

Bytes = npt.NDArray[np.uint8]  # [C, H, W]


def open_image(source: Path | bytes, max_pixels: int | None = None) -> Image.Image:
    """Decode an image file completely and turn it upright (EXIF).

    Raises:
        DataError: if it is no image, truncated, or larger than `max_pixels` (`MAX_PIXELS` if None); names the
            file.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    name = str(source) if isinstance(source, Path) else f"an image of {len(source):,} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is judged here
            with Image.open(
                source if isinstance(source, Path) else BytesIO(source), formats=FORMATS
            ) as image:
                if image.width * image.height > most:
                    raise DataError(
                        f"{name} has {image.width} x {image.height} pixels; at most {most:,} "
                        "are read. Make it smaller."
                    )
                image.load()
                return ImageOps.exif_transpose(image)
    except DataError:
        raise
    except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything
        raise DataError(
            f"{name} cannot be decoded: {error}. Repair it, or take it out of the folder."
        ) from error


def to_bytes(image: Image.Image, size: int, in_chans: int) -> Bytes:
    """Return the image as uint8 [in_chans, size, size].

    Its colours become RGB (3 channels) or grey (1); transparency is laid on black; 16 bits a
    channel are scaled to 8. The shorter side is resized to `size` (bilinear, antialiased) and the
    middle of the longer one is kept.
    """
    mode = {1: "L", 3: "RGB"}.get(in_chans)
    if mode is None:
        raise DataError(f"images have 1 or 3 channels; in_chans is {in_chans}")
    plain = _eight_bits(image)
    if plain.has_transparency_data:
        rgba = plain.convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    plain = plain.convert(mode)
    if plain.size != (size, size):
        plain = ImageOps.fit(plain, (size, size), method=Image.Resampling.BILINEAR)
    array = np.asarray(plain, dtype=np.uint8).reshape(size, size, in_chans)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's own conversion would clip it to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        values[values == image.info.get("transparency", -1)] = 0
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8))
    return image.convert("RGB") if image.mode == "LAB" else image
