"""From an image file to pixels."""

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

from robust_export.data import image_files as images
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
def test_a_lossless_file_comes_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RGB).save(path, lossless=True)  # what only WebP asks
    np.testing.assert_array_equal(pixels(open_image(path)), RGB.transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels(open_image(path.read_bytes())), RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_a_lossy_file_comes_back_closely(format: str) -> None:
    smooth = np.add.outer(np.arange(32) * 4, np.arange(32) * 3).astype(np.uint8)
    image = Image.fromarray(smooth).convert("RGB")
    found = pixels(open_image(encoded(image, format, quality=95)), 32).astype(int)
    assert np.abs(found - smooth).max() <= 6


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"]
)
@pytest.mark.parametrize("size", [8, 5, 13])
def test_every_mode_gives_bytes(mode: str, in_chans: int, size: int) -> None:
    found = pixels(Image.new(mode, (9, 7)), size, in_chans)
    assert found.dtype == np.uint8
    assert found.shape == (in_chans, size, size)
    assert found.flags.c_contiguous


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(("mode", "format"), [("LAB", "TIFF"), ("YCbCr", "TIFF"), ("CMYK", "JPEG")])
def test_other_colour_spaces_can_be_read(mode: str, format: str, in_chans: int) -> None:
    image = open_image(encoded(Image.new(mode, (8, 8)), format))
    assert pixels(image, in_chans=in_chans).shape == (in_chans, 8, 8)


def test_grey_becomes_three_equal_channels_and_back() -> None:
    three = pixels(Image.fromarray(GREY))
    np.testing.assert_array_equal(three, np.stack([GREY] * 3))
    np.testing.assert_array_equal(pixels(Image.fromarray(GREY), in_chans=1), GREY[None])
    np.testing.assert_array_equal(pixels(Image.fromarray(three.transpose(1, 2, 0)), in_chans=1), GREY[None])


def test_colours_become_luma() -> None:
    """ITU-R 601, as everywhere."""
    found = pixels(Image.fromarray(RGB), in_chans=1)[0]
    np.testing.assert_allclose(found, RGB @ np.array([0.299, 0.587, 0.114]), atol=1)


def test_one_bit_is_black_and_white() -> None:
    bits = GREY > 127
    found = pixels(open_image(encoded(Image.fromarray(bits), "PNG")), in_chans=1)
    np.testing.assert_array_equal(found[0], bits * 255)


def test_cmyk_becomes_rgb() -> None:
    """Without ink it is white, with all cyan it has no red."""
    assert pixels(Image.new("CMYK", (8, 8))).min() == 255
    np.testing.assert_array_equal(pixels(Image.new("CMYK", (8, 8), (255, 0, 0, 0)))[:, 0, 0], [0, 255, 255])


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 7, 8, 9] + [0] * (252 * 3))
    found = pixels(open_image(encoded(image, "PNG")))
    np.testing.assert_array_equal(found[:, 0, :4].T, [[255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 8, 9]])


# --- 16 bits ---


@pytest.mark.parametrize(("mode", "format"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF")])
@pytest.mark.parametrize(
    ("level", "byte"), [(0, 0), (255, 0), (256, 1), (32768, 128), (40000, 156), (65535, 255)]
)
def test_sixteen_bits_are_scaled(mode: str, format: str, level: int, byte: int) -> None:
    array = np.full((8, 8), level, np.uint16 if mode == "I;16" else np.int32)
    image = open_image(encoded(Image.fromarray(array), format))
    assert image.mode == mode
    assert np.unique(pixels(image)).tolist() == [byte]


@pytest.mark.parametrize(("level", "byte"), [(0.0, 0), (0.5, 128), (1.0, 255), (1.7, 255), (-1.0, 0)])
def test_floats_are_fractions_of_white(level: float, byte: int) -> None:
    image = open_image(encoded(Image.fromarray(np.full((8, 8), level, np.float32)), "TIFF"))
    assert np.unique(pixels(image)).tolist() == [byte]


# --- transparency ---


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_transparency_is_laid_on_black(mode: str, alpha: int, in_chans: int) -> None:
    image = Image.new("RGBA", (8, 8), (200, 200, 200, alpha)).convert(mode)
    found = pixels(image, in_chans=in_chans)
    assert np.abs(found.astype(int) - round(200 * alpha / 255)).max() <= 1


@pytest.mark.parametrize(("mode", "colour"), [("P", 1), ("L", 77), ("RGB", (1, 2, 3)), ("I;16", 40000)])
def test_a_transparent_colour_is_black(mode: str, colour: int | tuple[int, ...]) -> None:
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 201, 202] + [0] * (254 * 3))
    assert pixels(open_image(encoded(image, "PNG"))).min() > 0
    assert pixels(open_image(encoded(image, "PNG", transparency=colour))).max() == 0


def test_a_palette_with_a_table_of_opacities() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2).convert("P")
    image.putpalette([200] * 768)
    found = pixels(open_image(encoded(image, "PNG", transparency=bytes([0, 255]))))
    np.testing.assert_array_equal(found[0, 0, :4], [0, 200, 0, 200])


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
def test_one_colour_stays_one_colour(size: int, shape: tuple[int, int]) -> None:
    found = pixels(Image.new("RGB", shape, (12, 200, 77)), size)
    np.testing.assert_array_equal(found, np.full((3, size, size), 1, np.uint8) * [[[12]], [[200]], [[77]]])


def test_shrinking_by_two_is_a_tent() -> None:
    """An antialiased bilinear filter of twice the width: weights 1, 3, 3, 1 over 8, both ways."""
    large = RNG.integers(0, 256, (16, 16)).astype(np.uint8)
    weights = np.array([1, 3, 3, 1]) / 8
    expected = sum(
        np.outer(weights, weights)[i, j] * large[1 + i : 13 + i : 2, 1 + j : 13 + j : 2]
        for i, j in np.ndindex(4, 4)
    )
    found = pixels(Image.fromarray(large), 8, 1)[0, 1:7, 1:7]
    np.testing.assert_allclose(found, expected, atol=1.01)


@pytest.mark.parametrize("upright", [True, False])
def test_the_middle_of_the_longer_side_is_kept(upright: bool) -> None:
    wide = RNG.integers(0, 256, (8, 14, 3), dtype=np.uint8)
    image = Image.fromarray(wide.transpose(1, 0, 2) if upright else wide)
    middle = wide[:, 3:11].transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels(image), middle.transpose(0, 2, 1) if upright else middle)


# --- what is refused ---


@pytest.mark.parametrize("in_chans", [0, 2, 4, -1])
def test_other_channels_are_refused(in_chans: int) -> None:
    with pytest.raises(DataError, match=f"in_chans is {in_chans}"):
        pixels(Image.new("RGB", (8, 8)), 8, in_chans)


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG that declares many pixels and has none."""

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
    "an offset that is a text": re.sub(
        rb"\x11\x01[\x03\x04]\x00", b"\x11\x01\x02\x00", encoded(Image.fromarray(RGB), "TIFF")
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named_and_closed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    if os.path.isdir("/proc/self/fd"):
        assert str(path) not in [os.path.realpath(entry.path) for entry in os.scandir("/proc/self/fd")]
    with pytest.raises(DataError, match=f"{len(DAMAGED[kind]):,} bytes"):
        open_image(DAMAGED[kind])


def test_the_largest_image_and_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 64)
    assert open_image(encoded(Image.new("L", (8, 8)), "PNG")).size == (8, 8)
    with pytest.raises(DataError, match="13 x 5 pixels; at most 64"):
        open_image(encoded(Image.new("L", (13, 5)), "PNG"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(DataError, match=path.name):
            open_image(path)


def test_no_program_is_run_for_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow runs Ghostscript for an EPS, whatever the file is called."""
    calls: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: calls.append(args))
    with pytest.raises(DataError):
        open_image(encoded(Image.fromarray(RGB), "EPS"))
    assert calls == []


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]), st.data())
@settings(deadline=None, max_examples=300, derandomize=True)
def test_a_file_with_wrong_bytes_is_an_image_or_a_data_error(format: str, data: st.DataObject) -> None:
    content = bytearray(encoded(Image.fromarray(RGB), format))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        assert pixels(open_image(bytes(content))).shape == (3, 8, 8)


# --- what serving imports ---


@pytest.mark.parametrize("room", ["", ".images", ".bundle", ".config", ".errors"])
def test_torch_is_not_imported(room: str) -> None:
    script = f"import robust_export{room}, sys; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
