"""Handwritten digits on paper: who wrote what, and how a sheet is drawn.

The digits are those that scikit-learn ships: 1,797 bitmaps of 8 × 8, the test part of the UCI set,
of writers who each filled in the same form of about 130 digits. The package names no writer, but a
form begins with 0 1 2 … 9, two or three times over, in plain sight: the splits are cut where a form
begins, so that no form is in two of them.

A bitmap becomes a stroke again by enlarging it smoothly and cutting it off at a level: a low one
gives a broad pen, a high one a fine pen. Papers and inks belong to one split.
"""

import colorsys
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from llava_mole.errors import ConfigError

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise ConfigError(
        f"package {error.name!r} is missing: scikit-learn ships the handwritten digits. "
        'Install it with: pip install -e ".[starter]"'
    ) from error

PIXELS = 224

RECORDS = {"train": range(0, 1157), "dev": range(1157, 1415), "test": range(1415, 1797)}
"""Records of each split: nine forms, two, three."""

PAPERS = {
    "train": ("plain", "lined", "sticky", "slate"),
    "dev": ("squared",),
    "test": ("kraft", "crumpled"),
}
"""Papers of each split."""

Rgb = tuple[float, float, float]
INKS: dict[str, tuple[Rgb, ...]] = {
    "train": ((25, 25, 30), (25, 45, 140), (170, 30, 35), (30, 95, 50)),
    "dev": ((85, 35, 120), (95, 55, 25)),
    "test": ((10, 80, 95), (120, 15, 70)),
}
"""Inks of each split; on slate it is chalk."""
CHALKS: tuple[Rgb, ...] = ((245, 245, 240), (250, 225, 130), (250, 180, 190))


@dataclass(frozen=True)
class Written:
    """One digit on a sheet."""

    record: int
    """Of ``load_digits``."""
    x: float
    """Centre, in shares of the sheet."""
    y: float
    size: float
    """Height of its bitmap, as a share of the sheet."""


@cache
def _data() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return bunch.images.astype(np.float32) / 16, bunch.target


def value(record: int) -> int:
    """Which digit a record is."""
    return int(_data()[1][record])


def draw(written: tuple[Written, ...], paper: str, split: str, rng: random.Random) -> Image.Image:
    """A sheet with the digits on it: RGB, PIXELS × PIXELS. One hand, one pen, one ink a sheet."""
    sheet = _PAPERS[paper](rng)
    ink = np.array(rng.choice(CHALKS if paper == "slate" else INKS[split]), dtype=np.float32)
    level = rng.uniform(0.42, 0.55)
    slant = rng.uniform(-0.18, 0.18)
    for digit in written:
        mask = _stroke(digit, level, slant + rng.uniform(-0.05, 0.05), rng.uniform(-10, 10))
        grain = 0.9 if paper != "slate" else _chalk(rng)
        alpha = (mask * grain)[..., None]
        sheet = sheet * (1 - alpha) + ink * alpha
    return Image.fromarray(np.clip(sheet, 0, 255).astype(np.uint8))


def _stroke(digit: Written, level: float, slant: float, angle: float) -> np.ndarray:
    """How much ink each pixel of the sheet takes, in 0..1."""
    bitmap = np.pad(_data()[0][digit.record], 1)
    side = round(digit.size * PIXELS * bitmap.shape[0] / 8)
    image = Image.fromarray((bitmap * 255).astype(np.uint8))
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    image = image.filter(ImageFilter.GaussianBlur(side / 60))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    centre = (digit.x * PIXELS, digit.y * PIXELS)
    # Sheet to bitmap: move the centre to the origin, turn back, take the slant out.
    a, b = cos, sin + slant
    d, e = -sin, cos
    data = (
        a, b, side / 2 - a * centre[0] - b * centre[1],
        d, e, side / 2 - d * centre[0] - e * centre[1],
    )  # fmt: skip
    image = image.transform(
        (PIXELS, PIXELS), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    soft = 0.12  # of the range of levels in which an edge fades
    raised = np.asarray(image, dtype=np.float32) / 255
    around = np.asarray(image.filter(ImageFilter.GaussianBlur(side / 9)), dtype=np.float32) / 255
    raised = raised + 0.8 * (raised - around)  # small loops open, thin strokes hold
    return np.clip((raised - level) / soft + 0.5, 0, 1)


# --- papers ---------------------------------------------------------------------------------------


def _coordinates() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:PIXELS, 0:PIXELS].astype(np.float32)
    return x, y


def _tone(rng: random.Random, lightness: tuple[float, float], saturation: float) -> np.ndarray:
    shade = colorsys.hls_to_rgb(rng.random(), rng.uniform(*lightness), rng.uniform(0, saturation))
    return np.array(shade, dtype=np.float32) * 255


def _uniform(colour: np.ndarray) -> np.ndarray:
    return np.tile(colour.astype(np.float32), (PIXELS, PIXELS, 1))


def _noise(rng: random.Random, strength: float, coarse: int) -> np.ndarray:
    """(PIXELS, PIXELS, 1), smooth over about ``coarse`` pixels."""
    cells = PIXELS // coarse + 2
    raw = np.random.default_rng(rng.randrange(2**32)).normal(0, 1, (cells, cells))
    image = Image.fromarray(raw.astype(np.float32)).resize(
        (PIXELS, PIXELS), Image.Resampling.BICUBIC
    )
    return np.asarray(image)[..., None] * strength


def _plain(rng: random.Random) -> np.ndarray:
    return _uniform(_tone(rng, (0.9, 1.0), 0.4))


def _lined(rng: random.Random) -> np.ndarray:
    sheet = _uniform(_tone(rng, (0.93, 1.0), 0.3))
    _, y = _coordinates()
    step = rng.uniform(26, 40)
    sheet[(y + rng.uniform(0, step)) % step < 1.6] = (165, 190, 225)
    if rng.random() < 0.5:
        margin = round(rng.uniform(16, 30))
        sheet[:, margin : margin + 2] = (230, 150, 150)
    return sheet


def _sticky(rng: random.Random) -> np.ndarray:
    """A note in a strong pale colour on a desk."""
    sheet = _uniform(_tone(rng, (0.5, 0.8), 0.25)) + _noise(rng, 4, 12)
    notes = ((255, 242, 130), (255, 190, 205), (185, 235, 180), (175, 220, 250))
    left, top, right, bottom = (round(rng.uniform(2, 12)) for _ in range(4))
    x, y = _coordinates()
    shadow = (x > left + 4) & (x < PIXELS - right + 4) & (y > top + 4) & (y < PIXELS - bottom + 4)
    sheet[shadow] *= 0.75
    note = (x > left) & (x < PIXELS - right) & (y > top) & (y < PIXELS - bottom)
    sheet[note] = rng.choice(notes)
    return sheet - 12 * (y / PIXELS)[..., None] * note[..., None]


def _slate(rng: random.Random) -> np.ndarray:
    tone = rng.choice(((35, 65, 50), (45, 48, 52), (40, 50, 75)))
    return _uniform(np.array(tone)) + _noise(rng, 9, 20)


def _chalk(rng: random.Random) -> np.ndarray:
    return np.clip(0.85 + _noise(rng, 0.12, 3)[..., 0], 0.3, 1)


def _squared(rng: random.Random) -> np.ndarray:
    sheet = _uniform(_tone(rng, (0.92, 0.98), 0.3))
    x, y = _coordinates()
    step = rng.uniform(14, 22)
    lines = ((x + rng.uniform(0, step)) % step < 1.3) | ((y + rng.uniform(0, step)) % step < 1.3)
    sheet[lines] = (190, 205, 200)
    return sheet


def _kraft(rng: random.Random) -> np.ndarray:
    tone = np.array((205, 170, 125)) + rng.uniform(-12, 12)
    return _uniform(tone) + _noise(rng, 7, 5)


def _crumpled(rng: random.Random) -> np.ndarray:
    """Paper that was folded: brightness jumps at a few creases."""
    sheet = _uniform(_tone(rng, (0.86, 0.95), 0.25))
    x, y = _coordinates()
    for _ in range(rng.randint(3, 5)):
        angle = rng.uniform(0, math.pi)
        offset = (x - rng.uniform(40, 184)) * math.cos(angle) + (
            y - rng.uniform(40, 184)
        ) * math.sin(angle)
        sheet += (np.tanh(offset / 2) * rng.uniform(4, 9))[..., None]
    return sheet


_PAPERS: dict[str, Callable[[random.Random], np.ndarray]] = {
    "plain": _plain,
    "lined": _lined,
    "sticky": _sticky,
    "slate": _slate,
    "squared": _squared,
    "kraft": _kraft,
    "crumpled": _crumpled,
}
