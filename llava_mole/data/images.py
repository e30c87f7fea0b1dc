"""One picture from a file, bytes or PIL, as RGB: right, or refused by name; never replaced."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llava_mole.errors import DataError

MAX_PIXELS = 64_000_000
MAX_ASPECT = 200
"""Longer side by shorter. Resized by its shorter side, or padded to a square, a picture of a few
bytes beyond it would take gibibytes, and nothing of it could be seen."""

# Raster formats only. Left to itself, PIL would also hand EPS files to an external interpreter.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM")

_BROKEN = (
    OSError,
    RuntimeError,  # libavif's
    SyntaxError,  # PIL's word for a broken PNG
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What PIL's decoders raise on damaged files; nothing else runs inside the guarded lines."""

ImageSource = str | Path | bytes | BinaryIO | Image.Image


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as a fully decoded RGB image, upright, first frame, transparency on white.

    16-bit grey is scaled to 8 bits (65535 becomes 255), not clipped. CMYK, palettes, LA, RGBA and
    EXIF orientation are resolved. Size and proportions are read from the header and checked before
    any pixel is decoded.

    Args:
        source: a path, the bytes of a file, an open binary file, or a PIL image.
        max_pixels: width × height above which a picture is refused.

    Raises:
        DataError: the file (named) is missing, empty, truncated, too large, too long for its
            width, or no picture.
    """
    if isinstance(source, Image.Image):
        name = f"image {_name_of(source)}"
        _check_size(source, max_pixels, name)
        return _decode(source, name)
    with _opened(*_content(source), max_pixels) as (image, name):
        return _decode(image, name)


def pixels_of(source: str | Path | bytes | BinaryIO) -> int:
    """Width × height as the header has it; nothing is decoded.

    Raises:
        DataError: see `load_image`.
    """
    with _opened(*_content(source), None) as (image, _):
        return image.width * image.height


@contextmanager
def _opened(content: bytes, name: str, max_pixels: int | None) -> Iterator[tuple[Image.Image, str]]:
    """(header of a picture that is not too large, its name)."""
    try:
        Image.init()
        image = Image.open(io.BytesIO(content), formats=[f for f in _FORMATS if f in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # PIL's own guard comes before ours beyond twice PIL.Image.MAX_IMAGE_PIXELS.
        most = max_pixels or MAX_PIXELS
        raise DataError(
            f"{name}: too many pixels ({error}), at most {most:,} are accepted; scale it down"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_what_else(content)}") from error
    except _BROKEN as error:
        raise DataError(f"{name}: broken picture, its header cannot be read ({error})") from error
    with image:
        _check_size(image, MAX_PIXELS if max_pixels is None else max_pixels, name)
        yield image, name


def _content(source: str | Path | bytes | BinaryIO) -> tuple[bytes, str]:
    """(bytes, name for messages) of a path, bytes or an open file."""
    if isinstance(source, bytes | bytearray | memoryview):
        content, name = bytes(source), f"image given as {len(source):,} bytes"
    elif isinstance(source, str | Path):
        name = f"image '{source}'"
        try:
            content = Path(source).read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{name}: no such file") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: cannot be read ({error})") from error
    elif isinstance(source, io.IOBase):
        content, name = source.read(), f"image {_name_of(source)}"
        if not isinstance(content, bytes):
            raise DataError(f"{name}: the file is open as text; open it with mode 'rb'")
    else:
        raise DataError(
            f"expected a path, bytes, a binary file or a PIL image, found {type(source).__name__}"
        )
    if not content:
        raise DataError(f"{name}: empty, 0 bytes; it was perhaps never fully written or downloaded")
    return content, name


def _name_of(source: object) -> str:
    """Where an open file or a PIL image came from, as far as it knows."""
    for attribute in ("filename", "name"):
        value = getattr(source, attribute, None)
        if isinstance(value, str) and value:
            return f"'{value}'"
    return f"from a {type(source).__name__} object"


def _check_size(image: Image.Image, max_pixels: int, name: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{name}: {width:,} × {height:,} = {width * height:,} pixels, "
            f"at most {max_pixels:,} are accepted; scale it down"
        )
    if width < 1 or height < 1:
        raise DataError(f"{name}: {width} × {height}, no pixels at all")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            f"{name}: {width:,} × {height:,} pixels, one side more than {MAX_ASPECT} times the "
            "other; cut it to what should be seen, or leave the record out"
        )


def _what_else(content: bytes) -> str:
    """What a file that is no raster picture probably is, and what to do."""
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "an SVG drawing, not a raster picture; render it to PNG first"
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page, probably what a failed download left; fetch the picture again"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the picture; run 'git lfs pull'"
    accepted = ", ".join(f for f in _FORMATS if f not in ("MPO", "DIB"))
    return f"not a picture in a format that can be read ({accepted})"


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()  # Image.open reads the header only; a cut file shows here
        upright = ImageOps.exif_transpose(image)
        return _rgb(upright, name)
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"{name}: truncated or damaged {image.format or 'picture'}, "
            f"{image.width} × {image.height} by its header ({error})"
        ) from error


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Any PIL mode to RGB; what is transparent shows white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _from_deep_grey(image, name)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    if image.mode == "LAB":
        raise DataError(f"{name}: CIELAB samples; convert it to sRGB first")
    return image.convert("RGB") if image.mode != "RGB" else image


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey: 0..65535 to 0..255. 32-bit samples only where their range says what white is."""
    samples = np.asarray(image)
    low, high = float(samples.min()), float(samples.max())
    if image.mode == "F" and low >= 0.0 and high <= 1.0:
        grey = samples.astype(np.float64) * 255.0
    elif image.mode != "F" and low >= 0 and high <= 65535:
        grey = samples.astype(np.float64) / 257.0
    else:
        raise DataError(
            f"{name}: {image.mode!r} samples from {low:g} to {high:g}; "
            "expected 16-bit integers or floats in 0..1: which value is white is not known"
        )
    levels = np.rint(grey).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[samples == transparent] = 255
    return Image.fromarray(levels).convert("RGB")
