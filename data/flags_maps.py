"""Maps of the world with one place marked: projections, colours and markers belong to one split.

A map is sampled backwards: each pixel's longitude and latitude come from the projection's inverse,
and whether there is land from a mask of the whole earth. No border is drawn, so no map takes sides.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if __package__:
    from data import flags_catalogue as catalogue
else:
    import flags_catalogue as catalogue

PIXELS = 224
SIDE = 2 * PIXELS
CELLS = 4
"""Pixels of the land mask per degree."""
CLEAR = 4
"""Degrees between a marked place and the nearest land of another part of the world."""

FAMILIES = {
    "train": ("equirectangular", "mercator", "sinusoidal"),
    "dev": ("mollweide",),
    "test": ("miller",),
}
"""Projections of each split."""
MARKERS = {"train": ("dot", "ring", "pin"), "dev": ("square",), "test": ("star",)}

Rgb = tuple[int, int, int]
PALETTES: dict[str, tuple[tuple[Rgb, Rgb], ...]] = {
    "train": (
        ((170, 205, 235), (225, 225, 200)), ((90, 140, 190), (150, 180, 110)),
        ((245, 245, 245), (170, 170, 170)), ((215, 235, 250), (120, 160, 120)),
        ((30, 45, 80), (200, 190, 150)), ((255, 255, 255), (90, 100, 110)),
    ),
    "dev": (((20, 20, 30), (95, 110, 130)), ((235, 225, 205), (160, 120, 85))),
    "test": (((60, 110, 120), (235, 230, 215)), ((225, 215, 235), (110, 95, 140))),
}  # fmt: skip
"""(sea, land) of each split."""
MARKER_COLOURS = ((220, 30, 40), (200, 20, 120), (240, 90, 20))


@dataclass(frozen=True)
class Place:
    """A marked place."""

    part: str
    """Part of the world, one of ``catalogue.PARTS``."""
    longitude: float
    latitude: float


@cache
def _masks() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Land of the whole earth, and cells where each part's places may be: (180, 360) × CELLS."""
    size = (360 * CELLS, 180 * CELLS)
    earth = Image.new("L", size)
    of_part = {part: Image.new("L", size) for part in catalogue.PARTS}
    others = {part: Image.new("L", size) for part in catalogue.PARTS}
    for owner, ring in catalogue.land():
        outline = [((x + 180) * CELLS, (90 - y) * CELLS) for x, y in ring]
        ImageDraw.Draw(earth).polygon(outline, fill=255)
        for part in catalogue.PARTS:
            image = of_part[part] if part == owner else others[part]
            ImageDraw.Draw(image).polygon(outline, fill=255)
    allowed = {}
    for part in catalogue.PARTS:
        near = others[part].filter(ImageFilter.BoxBlur(CLEAR * CELLS))
        allowed[part] = (np.asarray(of_part[part]) > 0) & (np.asarray(near) == 0)
    return np.asarray(earth) > 0, allowed


def split_of_cell(longitude: float, latitude: float) -> str:
    """Which split may mark a place: the earth in fields of 10 degrees, dealt out for good."""
    field = math.floor(longitude / 10) * 7 + math.floor(latitude / 10) * 3
    return {0: "dev", 3: "test"}.get(field % 6, "train")


def draw_place(part: str, split: str, rng: random.Random) -> Place:
    """A place of the part, evenly over its area on a flat map, in a field of the split."""
    rows, columns = np.nonzero(_masks()[1][part])
    while True:
        lot = rng.randrange(len(rows))
        longitude = columns[lot] / CELLS - 180
        latitude = 90 - rows[lot] / CELLS
        if abs(latitude) < 70 and split_of_cell(longitude, latitude) == split:
            return Place(part, float(longitude), float(latitude))


# --- projections ----------------------------------------------------------------------------------

Flat = tuple[np.ndarray, np.ndarray]


def _equirectangular(x: np.ndarray, y: np.ndarray) -> Flat:
    return x, y


def _mercator(x: np.ndarray, y: np.ndarray) -> Flat:
    return x, 2 * np.arctan(np.exp(y)) - math.pi / 2


def _miller(x: np.ndarray, y: np.ndarray) -> Flat:
    return x, 2.5 * np.arctan(np.exp(0.8 * y)) - 0.625 * math.pi


def _sinusoidal(x: np.ndarray, y: np.ndarray) -> Flat:
    return x / np.maximum(np.cos(y), 1e-6), y


def _mollweide(x: np.ndarray, y: np.ndarray) -> Flat:
    sine = np.clip(y / math.sqrt(2), -1, 1)
    angle = np.arcsin(sine)
    latitude = np.arcsin(np.clip((2 * angle + np.sin(2 * angle)) / math.pi, -1, 1))
    longitude = math.pi * x / (2 * math.sqrt(2) * np.maximum(np.cos(angle), 1e-6))
    return np.where(np.abs(y) <= math.sqrt(2), longitude, np.inf), latitude


_INVERSE: dict[str, tuple[Callable[[np.ndarray, np.ndarray], Flat], float, float]] = {
    "equirectangular": (_equirectangular, math.pi, math.pi / 2),
    "mercator": (_mercator, math.pi, 2.6),
    "miller": (_miller, math.pi, 2.0),
    "sinusoidal": (_sinusoidal, math.pi, math.pi / 2),
    "mollweide": (_mollweide, 2 * math.sqrt(2), math.sqrt(2)),
}
"""Inverse, and half the width and half the height of the map in the projection's own units (Snyder,
"Map projections: a working manual", 1987)."""


def draw(place: Place, split: str, family: str, rng: random.Random) -> Image.Image:
    """A map with the place marked: RGB, PIXELS × PIXELS."""
    inverse, half_width, half_height = _INVERSE[family]
    centre = rng.uniform(-25, 35)  # the central meridian
    zoom = rng.uniform(0.95, 1.1)
    stretch = rng.uniform(1.0, 1.35)  # maps on square pages are often stretched
    scale = 2 * half_width / SIDE / zoom
    across, down = np.meshgrid(np.arange(SIDE) - SIDE / 2, np.arange(SIDE) - SIDE / 2)
    x = (across + rng.uniform(-6, 6)) * scale
    y = -(down + rng.uniform(-30, 30)) * scale / stretch
    off = (np.abs(x) > half_width) | (np.abs(y) > half_height)
    longitude, latitude = inverse(x, y)
    off |= np.abs(longitude) > math.pi
    degrees = (np.degrees(np.where(off, 0, longitude)) + centre + 180) % 360
    latitude = np.degrees(np.where(off, 0, latitude))
    row = np.clip((90 - latitude) * CELLS, 0, 180 * CELLS - 1).astype(int)
    column = np.clip(degrees * CELLS, 0, 360 * CELLS - 1).astype(int)
    sea, ground = rng.choice(PALETTES[split])
    canvas = np.where(_masks()[0][row, column][..., None], ground, sea).astype(np.uint8)
    canvas[off] = 255
    # The pixel that is nearest to the place; distances in degrees, good enough to find it.
    apart = (degrees - 180 - place.longitude + 180) % 360 - 180
    distance = np.where(off, np.inf, apart**2 + (latitude - place.latitude) ** 2)
    at = np.unravel_index(int(distance.argmin()), distance.shape)
    picture = Image.fromarray(canvas)
    _mark(picture, (float(at[1]), float(at[0])), rng.choice(MARKERS[split]), rng)
    return picture.reduce(2)


def _mark(picture: Image.Image, at: tuple[float, float], shape: str, rng: random.Random) -> None:
    x, y = at
    size = rng.uniform(15, 24)
    colour = rng.choice(MARKER_COLOURS)
    pen = ImageDraw.Draw(picture)
    box = (x - size, y - size, x + size, y + size)
    if shape == "dot":
        pen.ellipse(box, fill=colour, outline="white", width=3)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=8)
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour, outline="white", width=3)
    elif shape == "star":
        reach = [size * 1.3 * (1.0 if corner % 2 == 0 else 0.42) for corner in range(10)]
        turns = [math.pi * corner / 5 for corner in range(10)]
        points = [
            (x + r * math.sin(turn), y - r * math.cos(turn))
            for r, turn in zip(reach, turns, strict=True)
        ]
        pen.polygon(points, fill=colour, outline="white")
    else:  # a pin: its tip is the place
        head = (x - size * 0.8, y - size * 2.4, x + size * 0.8, y - size * 0.8)
        pen.polygon(
            [(x, y), (x - size * 0.72, y - size * 1.3), (x + size * 0.72, y - size * 1.3)],
            fill=colour,
        )
        pen.ellipse(head, fill=colour)
        hole = size * 0.3
        pen.ellipse(
            (x - hole, y - size * 1.6 - hole, x + hole, y - size * 1.6 + hole), fill="white"
        )
