"""The second pass: every picture once. Does it decode, is it usable, is it a benchmark's?"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava_mole.data.images import load_image
from llava_mole.data.sample import ImageRef, Sample
from llava_mole.data.sources import Source
from llava_mole.errors import DataError
from llava_mole.inspection.findings import Finding
from llava_mole.inspection.fingerprints import FINGERPRINT, Fingerprints, fingerprint
from llava_mole.inspection.known_pictures import KnownPictures, Match
from llava_mole.inspection.records import of_error

PICTURES = 64
"""a part"""
SMALLEST = 32
"""Pixels of the shorter side: below, a tower sees next to nothing but interpolation."""
LONGEST = 8.0
"""Longer side by shorter: above, squashed or padded to a square, little is left."""


@dataclass(frozen=True)
class PictureState:
    """What all parts share. `known`: pictures of the benchmarks."""

    source: Source
    known: KnownPictures


@dataclass
class PicturePart:
    """What a part of the pictures gave.

    Attributes:
        findings: without the number of records that show the picture.
        names: as the data name them, per picture.
        prints: (n,), empty where a picture cannot be read.
        read: (n,) whether it can be.
        matches: with the benchmarks' pictures.
    """

    findings: list[tuple[int, Finding]]
    names: list[str]
    prints: Fingerprints
    read: NDArray[np.bool_]
    matches: list[Match]


def inspect_pictures(state: PictureState, part: NDArray[np.int64]) -> PicturePart:
    """Open one part of the pictures.

    Args:
        part: (n, 2) record and slot that show each picture first, in the order of the records.
    """
    out = PicturePart([], [], np.zeros(len(part), FINGERPRINT), np.zeros(len(part), bool), [])
    for place, (where, image) in enumerate(_shown(state.source, part)):
        name, content = "", b""
        try:
            if isinstance(image, DataError):
                raise image
            name, content = content_of(image)
            decoded = load_image(named(content, name))
        except DataError as error:
            out.names.append(name)
            found = of_error(error, where, "image-unreadable")
            out.findings.append((place, replace(found, value=name or None)))
            continue
        out.names.append(name)
        out.prints[place] = fingerprint(decoded, content)
        out.read[place] = True
        for finding in check_picture(decoded, bool(out.prints[place]["flat"]), name, where):
            out.findings.append((place, finding))
    out.matches = state.known.matches(out.prints, out.read)
    return out


def content_of(image: ImageRef) -> tuple[str, bytes]:
    """(name, bytes of the file). Raises DataError if it cannot be read."""
    if isinstance(image, bytes):
        return "", image
    try:
        return str(image), image.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"image '{image}': cannot be read ({error})") from error


def named(content: bytes, name: str) -> bytes | io.BytesIO:
    """What `load_image` calls by its name, and reads no second time."""
    if not name:
        return content
    file = io.BytesIO(content)
    file.name = name
    return file


def check_picture(image: Image.Image, flat: bool, name: str, where: str) -> Iterator[Finding]:
    """Findings about a picture that can be read."""
    called = f"image '{name}'" if name else "image"
    short_side, long_side = sorted(image.size)
    value = name or None
    size = f"{image.width} × {image.height} pixels"
    if short_side < SMALLEST:
        message = f"{called}: {size}, the shorter side is under {SMALLEST}"
        yield Finding("warning", "image-small", where, message, value)
    if long_side > LONGEST * short_side:
        message = f"{called}: {size}, {long_side / short_side:.0f} times as long as wide"
        yield Finding("warning", "image-elongated", where, message, value)
    if flat:
        message = f"{called}: of one colour, nothing to see"
        yield Finding("warning", "image-blank", where, message, value)


def _shown(source: Source, part: NDArray[np.int64]) -> Iterator[tuple[str, ImageRef | DataError]]:
    """(file:line, picture) of each; neighbouring records are read once."""
    last = -1
    sample: Sample | DataError | None = None
    where = ""
    for number, slot in part.tolist():
        if number != last:
            [(last, where, sample)] = source.walk(number, number + 1, note_missing=[])
        if isinstance(sample, Sample) and slot < len(sample.images):
            yield where, sample.images[slot]
        else:
            changed = DataError(f"{where}: the data changed while they were inspected")
            yield where, sample if isinstance(sample, DataError) else changed


def shown_name(name: str, root: Path | None) -> str:
    """A picture's name under the image root."""
    path = Path(name)
    return str(path.relative_to(root)) if root is not None and path.is_relative_to(root) else name
