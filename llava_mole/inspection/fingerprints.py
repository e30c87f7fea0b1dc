"""What is kept of a picture to recognise it: hashes of its bytes and pixels, and how it looks.

Two difference hashes of 64 bits each say where the picture gets brighter, along rows and along
columns. Both ignore size, compression, brightness and colour; a small thumbnail settles what they
only suggest (`alike.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""of the grey thumbnail"""
CELLS = 8
"""of the colour thumbnail and of the hashes"""
FLAT = 2.0
"""Standard deviation of the grey thumbnail's levels below which there is nothing to recognise."""
RISE = 1.0
"""Levels of 255 that count as brighter: less is what JPEG leaves on an even ground."""

FINGERPRINT = np.dtype(
    [
        ("bytes", np.void, 32),  # SHA-256 of the file
        ("pixels", np.void, 32),  # SHA-256 of size and RGB values
        ("along_rows", np.uint64),
        ("along_columns", np.uint64),
        ("grey", np.uint8, (SIDE, SIDE)),
        ("colour", np.int8, (2, CELLS, CELLS)),
        ("width", np.uint32),
        ("height", np.uint32),
        ("flat", np.bool_),
    ]
)
"""1,241 bytes a picture."""

HASHES = ("along_rows", "along_columns")

Fingerprints = NDArray[np.void]


def fingerprint(image: Image.Image, content: bytes) -> Fingerprints:
    """() of `FINGERPRINT`.

    Args:
        image: decoded, RGB.
        content: the file's bytes.
    """
    pixels = hashlib.sha256(f"{image.width} {image.height} ".encode())
    pixels.update(image.tobytes())
    grey = _shrunk(image.convert("L"), SIDE, SIDE)
    found = np.zeros((), FINGERPRINT)
    found["bytes"] = np.void(hashlib.sha256(content).digest())
    found["pixels"] = np.void(pixels.digest())
    found["along_rows"] = _hash(_area(grey, CELLS, CELLS + 1), axis=1)
    found["along_columns"] = _hash(_area(grey, CELLS + 1, CELLS), axis=0)
    found["grey"] = np.rint(grey)
    # Blue and red differences of YCbCr, centred: zero where there is no colour.
    channels = image.convert("YCbCr").split()[1:]
    shades = [_shrunk(channel, CELLS, CELLS) - 128 for channel in channels]
    found["colour"] = np.clip(np.rint(shades), -127, 127)
    found["width"], found["height"] = image.size
    found["flat"] = grey.std() < FLAT
    return found


def stacked(found: Sequence[Fingerprints]) -> Fingerprints:
    """(n,) of `FINGERPRINT`."""
    return np.array(found, FINGERPRINT) if found else np.zeros(0, FINGERPRINT)


def _shrunk(image: Image.Image, height: int, width: int) -> NDArray[np.floating]:
    small = image.convert("F").resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def _area(grey: NDArray[np.floating], height: int, width: int) -> NDArray[np.floating]:
    """The thumbnail averaged down to (height, width)."""
    return windows(height, 0.0, 0.0) @ grey @ windows(width, 0.0, 0.0).T


def windows(cells: int, before: float, after: float) -> NDArray[np.floating]:
    """(cells, SIDE): averages over equal parts of what is left between two cut margins.

    Args:
        before, after: cut off, as shares of the side.
    """
    edges = np.linspace(before, 1.0 - after, cells + 1) * SIDE
    pixels = np.arange(SIDE)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(covered, 0, None) / (edges[1] - edges[0])).astype(np.float32)


def _hash(cells: NDArray[np.floating], axis: int) -> np.uint64:
    """64 bits: is each cell brighter than the one before it?"""
    bits = np.packbits(np.diff(cells, axis=axis).ravel() > RISE)
    return np.uint64(int.from_bytes(bits.tobytes(), "big"))
