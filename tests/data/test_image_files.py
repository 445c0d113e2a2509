"""Decoding image files, conversion to pixels, and refused files."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from robust_export.data import image_files
from robust_export.data.image_files import MAX_PIXELS, open_image, to_bytes
from robust_export.errors import DataError

Pixels = npt.NDArray[np.uint8]

RNG = np.random.default_rng(0)
RGB: Pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)  # [H, W, C]
GREY: Pixels = RNG.integers(0, 256, (8, 8), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image, size: int = 8, in_chans: int = 3) -> Pixels:
    return to_bytes(image, size, in_chans)


# --- formats and modes ---


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_formats_are_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RGB).save(path, lossless=True)  # an option of WebP only
    np.testing.assert_array_equal(pixels(open_image(path)), RGB.transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels(open_image(path.read_bytes())), RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats_are_close(format: str) -> None:
    smooth = np.add.outer(np.arange(32) * 4, np.arange(32) * 3).astype(np.uint8)
    image = Image.fromarray(smooth).convert("RGB")
    result = pixels(open_image(encoded(image, format, quality=95)), 32).astype(int)
    assert np.abs(result - smooth).max() <= 6


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"]
)
@pytest.mark.parametrize("size", [8, 5, 13])
def test_all_modes(mode: str, in_chans: int, size: int) -> None:
    result = pixels(Image.new(mode, (9, 7)), size, in_chans)
    assert result.dtype == np.uint8
    assert result.shape == (in_chans, size, size)
    assert result.flags.c_contiguous


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(("mode", "format"), [("LAB", "TIFF"), ("YCbCr", "TIFF"), ("CMYK", "JPEG")])
def test_other_colour_spaces(mode: str, format: str, in_chans: int) -> None:
    image = open_image(encoded(Image.new(mode, (8, 8)), format))
    assert pixels(image, in_chans=in_chans).shape == (in_chans, 8, 8)


def test_grey_to_rgb_and_back() -> None:
    three = pixels(Image.fromarray(GREY))
    np.testing.assert_array_equal(three, np.stack([GREY] * 3))
    np.testing.assert_array_equal(pixels(Image.fromarray(GREY), in_chans=1), GREY[None])
    np.testing.assert_array_equal(pixels(Image.fromarray(three.transpose(1, 2, 0)), in_chans=1), GREY[None])


def test_rgb_to_grey_is_luma() -> None:
    """ITU-R 601."""
    result = pixels(Image.fromarray(RGB), in_chans=1)[0]
    np.testing.assert_allclose(result, RGB @ np.array([0.299, 0.587, 0.114]), atol=1)


def test_one_bit_images() -> None:
    bits = GREY > 127
    result = pixels(open_image(encoded(Image.fromarray(bits), "PNG")), in_chans=1)
    np.testing.assert_array_equal(result[0], bits * 255)


def test_cmyk_to_rgb() -> None:
    """No ink is white, full cyan has no red."""
    assert pixels(Image.new("CMYK", (8, 8))).min() == 255
    np.testing.assert_array_equal(pixels(Image.new("CMYK", (8, 8), (255, 0, 0, 0)))[:, 0, 0], [0, 255, 255])


def test_palette() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 7, 8, 9] + [0] * (252 * 3))
    result = pixels(open_image(encoded(image, "PNG")))
    np.testing.assert_array_equal(result[:, 0, :4].T, [[255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 8, 9]])


# --- 16 bits ---


@pytest.mark.parametrize(("mode", "format"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF")])
@pytest.mark.parametrize(
    ("level", "byte"), [(0, 0), (255, 0), (256, 1), (32768, 128), (40000, 156), (65535, 255)]
)
def test_16_bits_are_scaled(mode: str, format: str, level: int, byte: int) -> None:
    array = np.full((8, 8), level, np.uint16 if mode == "I;16" else np.int32)
    image = open_image(encoded(Image.fromarray(array), format))
    assert image.mode == mode
    assert np.unique(pixels(image)).tolist() == [byte]


@pytest.mark.parametrize(("level", "byte"), [(0.0, 0), (0.5, 128), (1.0, 255), (1.7, 255), (-1.0, 0)])
def test_float_images(level: float, byte: int) -> None:
    image = open_image(encoded(Image.fromarray(np.full((8, 8), level, np.float32)), "TIFF"))
    assert np.unique(pixels(image)).tolist() == [byte]


# --- transparency ---


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_transparency_is_composed_on_black(mode: str, alpha: int, in_chans: int) -> None:
    image = Image.new("RGBA", (8, 8), (200, 200, 200, alpha)).convert(mode)
    result = pixels(image, in_chans=in_chans)
    assert np.abs(result.astype(int) - round(200 * alpha / 255)).max() <= 1


@pytest.mark.parametrize(("mode", "colour"), [("P", 1), ("L", 77), ("RGB", (1, 2, 3)), ("I;16", 40000)])
def test_transparent_colour_is_black(mode: str, colour: int | tuple[int, ...]) -> None:
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 201, 202] + [0] * (254 * 3))
    assert pixels(open_image(encoded(image, "PNG"))).min() > 0
    assert pixels(open_image(encoded(image, "PNG", transparency=colour))).max() == 0


def test_palette_with_alpha_table() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2).convert("P")
    image.putpalette([200] * 768)
    result = pixels(open_image(encoded(image, "PNG", transparency=bytes([0, 255]))))
    np.testing.assert_array_equal(result[0, 0, :4], [0, 200, 0, 200])


# --- orientation and size ---


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)), (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)), (8, lambda a: np.rot90(a)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, turn: object, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(Image.fromarray(RGB), format, exif=exif))
    assert callable(turn)
    np.testing.assert_array_equal(pixels(image), turn(RGB).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [1, 4, 8, 31])
@pytest.mark.parametrize("shape", [(8, 8), (20, 9), (9, 20), (1, 50), (50, 1)])
def test_resizing_keeps_a_constant_image(size: int, shape: tuple[int, int]) -> None:
    result = pixels(Image.new("RGB", shape, (12, 200, 77)), size)
    np.testing.assert_array_equal(result, np.full((3, size, size), 1, np.uint8) * [[[12]], [[200]], [[77]]])


def test_halving_uses_a_triangle_filter() -> None:
    """An antialiased bilinear filter: weights (1, 3, 3, 1) / 8 in both dimensions."""
    large = RNG.integers(0, 256, (16, 16)).astype(np.uint8)
    weights = np.array([1, 3, 3, 1]) / 8
    expected = sum(
        np.outer(weights, weights)[i, j] * large[1 + i : 13 + i : 2, 1 + j : 13 + j : 2]
        for i, j in np.ndindex(4, 4)
    )
    result = pixels(Image.fromarray(large), 8, 1)[0, 1:7, 1:7]
    np.testing.assert_allclose(result, expected, atol=1.01)


@pytest.mark.parametrize("upright", [True, False])
def test_longer_side_is_cropped_to_its_centre(upright: bool) -> None:
    wide = RNG.integers(0, 256, (8, 14, 3), dtype=np.uint8)
    image = Image.fromarray(wide.transpose(1, 0, 2) if upright else wide)
    middle = wide[:, 3:11].transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels(image), middle.transpose(0, 2, 1) if upright else middle)


# --- refused files ---


@pytest.mark.parametrize("in_chans", [0, 2, 4, -1])
def test_other_channels_are_refused(in_chans: int) -> None:
    with pytest.raises(DataError, match=f"in_chans is {in_chans}"):
        pixels(Image.new("RGB", (8, 8)), 8, in_chans)


def png_of(width: int, height: int) -> bytes:
    """Return a PNG header for width x height pixels without pixel data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


DAMAGED = {
    "empty": b"",
    "text": b"this is no image\n",
    "cut.png": encoded(Image.fromarray(RGB.repeat(9, 0)), "PNG")[:-300],
    "cut.jpg": encoded(Image.fromarray(RGB.repeat(9, 0)), "JPEG")[:-300],
    "cut.webp": encoded(Image.fromarray(RGB.repeat(9, 0)), "WEBP")[:-100],
    "cut.bmp": encoded(Image.fromarray(RGB), "BMP")[:-50],
    "no pixels": png_of(8, 8),
    "too large": png_of(MAX_PIXELS // 1000 + 1, 1000),
    "bomb": png_of(60_000, 60_000),
    "width 0": png_of(0, 8),
    "text as offset": re.sub(
        rb"\x11\x01[\x03\x04]\x00", b"\x11\x01\x02\x00", encoded(Image.fromarray(RGB), "TIFF")
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_file_is_refused_and_closed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    if os.path.isdir("/proc/self/fd"):
        assert str(path) not in [os.path.realpath(entry.path) for entry in os.scandir("/proc/self/fd")]
    with pytest.raises(DataError, match=f"{len(DAMAGED[kind]):,} bytes"):
        open_image(DAMAGED[kind])


def test_max_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 64)
    assert open_image(encoded(Image.new("L", (8, 8)), "PNG")).size == (8, 8)
    with pytest.raises(DataError, match="13 x 5 pixels; the limit is 64"):
        open_image(encoded(Image.new("L", (13, 5)), "PNG"))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(DataError, match=path.name):
            open_image(path)


def test_no_program_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run Ghostscript for an EPS file of any name."""
    calls: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: calls.append(args))
    with pytest.raises(DataError):
        open_image(encoded(Image.fromarray(RGB), "EPS"))
    assert calls == []


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]), st.data())
@settings(deadline=None, max_examples=300, derandomize=True)
def test_random_bytes_raise_only_data_errors(format: str, data: st.DataObject) -> None:
    content = bytearray(encoded(Image.fromarray(RGB), format))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        assert pixels(open_image(bytes(content))).shape == (3, 8, 8)


# --- imports ---


@pytest.mark.parametrize("module", ["", ".data.image_files", ".bundle", ".recipe.recipe_file", ".errors"])
def test_serving_imports_do_not_import_torch(module: str) -> None:
    script = (
        f"import robust_export{module}, sys; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
