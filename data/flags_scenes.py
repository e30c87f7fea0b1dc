"""A flag in a scene: flying, framed, on a pole, on a stamp. Families of scenes belong to one split.

A scene is drawn at twice its size and then halved. For every pixel it says which point of the flag
is seen there (``u`` across, ``v`` down, in 0..1; outside, there is no flag) and how bright it is;
colours are never shifted, no flag is mirrored, none is turned by more than 14 degrees: what is
asked about a flag keeps its answer. Each split has its own grounds, too: pale ones are trained on,
dark ones are dev, patterned ones test.
"""

import colorsys
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

PIXELS = 224
SIDE = 2 * PIXELS

FAMILIES = {
    "train": ("plain", "waving", "pole", "framed", "full"),
    "dev": ("tilted", "badge"),
    "test": ("stamp", "billowing"),
}
"""The families of scenes that each split draws, and no other does."""

Grid = np.ndarray
"""(SIDE, SIDE) floats."""


@dataclass
class View:
    """What is seen where: u and v of the flag, its brightness, and the part of it that shows."""

    u: Grid
    v: Grid
    shade: Grid
    shown: Grid


def draw(flag: Image.Image, family: str, rng: random.Random) -> Image.Image:
    """The flag (RGBA) in a scene of the family: RGB, PIXELS × PIXELS."""
    aspect = flag.width / flag.height
    if aspect > 1.2:  # proportions differ from maker to maker
        aspect = rng.uniform(1.35, 1.8)
    canvas, view = _SCENES[family](aspect, rng)
    _lay(canvas, np.asarray(flag, dtype=np.float32), view)
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return picture.reduce(2)


def _lay(canvas: np.ndarray, flag: np.ndarray, view: View) -> None:
    """Put what is seen of the flag on the canvas (SIDE, SIDE, 3), in place."""
    inside = view.shown & (view.u >= 0) & (view.u < 1) & (view.v >= 0) & (view.v < 1)
    height, width = flag.shape[:2]
    rows = (view.v[inside] * height).astype(np.int32)
    columns = (view.u[inside] * width).astype(np.int32)
    seen = flag.reshape(-1, 4).take(rows * width + columns, axis=0)
    lit = np.minimum(seen[:, :3] * view.shade[inside][:, None], 255)
    if flag[..., 3].min() < 255:
        alpha = seen[:, 3:] / 255
        lit = canvas[inside] * (1 - alpha) + lit * alpha
    canvas[inside] = lit


# --- places ---------------------------------------------------------------------------------------


def _pixels() -> tuple[Grid, Grid]:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    return x, y


def _oblong(
    aspect: float, rng: random.Random, extent: tuple[float, float], turn: float
) -> tuple[Grid, Grid, float, float]:
    """u, v of a turned oblong placed by lot, and its width and height in pixels."""
    angle = math.radians(rng.uniform(-turn, turn))
    width = SIDE * rng.uniform(*extent)
    width = min(width, SIDE * 0.9 * aspect)
    height = width / aspect
    cos, sin = math.cos(angle), math.sin(angle)
    across = (width * cos + height * abs(sin)) / 2
    down = (width * abs(sin) + height * cos) / 2
    centre = [
        SIDE / 2 + rng.uniform(-1, 1) * max(0.0, SIDE / 2 - half - 6) for half in (across, down)
    ]
    x, y = _pixels()
    x, y = x - centre[0], y - centre[1]
    u = (x * cos + y * sin) / width + 0.5
    v = (-x * sin + y * cos) / height + 0.5
    return u, v, width, height


def _everywhere(value: float = 1.0) -> Grid:
    return np.full((SIDE, SIDE), value, dtype=np.float32)


def _all() -> Grid:
    return np.ones((SIDE, SIDE), dtype=bool)


# --- grounds --------------------------------------------------------------------------------------


def _colour(rng: random.Random, lightness: tuple[float, float], saturation: float) -> np.ndarray:
    shade = colorsys.hls_to_rgb(rng.random(), rng.uniform(*lightness), rng.uniform(0, saturation))
    return np.array(shade, dtype=np.float32) * 255


def _ramp(first: np.ndarray, second: np.ndarray, angle: float) -> np.ndarray:
    x, y = _pixels()
    along = (x * math.cos(angle) + y * math.sin(angle)) / SIDE
    along = (along - along.min()) / (along.max() - along.min())
    return first + (second - first) * along[..., None]


def _pale(rng: random.Random) -> np.ndarray:
    """One pale colour, or a ramp between two."""
    first = _colour(rng, (0.72, 0.97), 0.7)
    second = first if rng.random() < 0.5 else _colour(rng, (0.72, 0.97), 0.7)
    return _ramp(first, second, rng.uniform(0, 2 * math.pi))


def _dark(rng: random.Random) -> np.ndarray:
    return _ramp(
        _colour(rng, (0.1, 0.35), 0.5), _colour(rng, (0.1, 0.35), 0.5), rng.uniform(0, 2 * math.pi)
    )


def _patterned(rng: random.Random) -> np.ndarray:
    """Dots, or a chequered cloth, in two shades of middling lightness."""
    first, second = _colour(rng, (0.42, 0.56), 0.22), _colour(rng, (0.56, 0.68), 0.22)
    x, y = _pixels()
    step = rng.uniform(24, 56)
    if rng.random() < 0.5:
        marked = ((x % step) - step / 2) ** 2 + ((y % step) - step / 2) ** 2 < (0.3 * step) ** 2
    else:
        marked = ((x // step) + (y // step)) % 2 == 0
    return np.where(marked[..., None], first, second)


def _sky(rng: random.Random) -> np.ndarray:
    blue = np.array([rng.uniform(120, 190), rng.uniform(180, 215), rng.uniform(220, 250)])
    return _ramp(blue.astype(np.float32), np.array([245, 245, 240], np.float32), math.pi / 2)


def _shadow(canvas: np.ndarray, u: Grid, v: Grid, by: float) -> None:
    """Darken the canvas where the oblong, moved by a little, lies."""
    lies = (u >= by) & (u < 1 + by) & (v >= by) & (v < 1 + by)
    canvas[lies] *= 0.72


# --- scenes ---------------------------------------------------------------------------------------

Scene = tuple[np.ndarray, View]


def _plain(aspect: float, rng: random.Random) -> Scene:
    u, v, _, _ = _oblong(aspect, rng, (0.5, 0.95), 12)
    canvas = _pale(rng)
    if aspect > 1.2 and rng.random() < 0.5:  # Nepal's flag is no oblong
        _shadow(canvas, u, v, 0.03)
    return canvas, View(u, v, _everywhere(rng.uniform(0.9, 1.05)), _all())


def _wave(u: Grid, v: Grid, rng: random.Random, depth: float, rate: float) -> View:
    """The oblong bent into waves that run across it and are shaded accordingly."""
    phase, frequency = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, rate)
    height = rng.uniform(0.5, 1.0) * depth
    angle = 2 * math.pi * frequency * (u + rng.uniform(-0.25, 0.25) * v) + phase
    shade = 1 - 0.02 - height * rng.uniform(1.2, 2.2) * np.cos(angle)
    return View(u, v + height * np.sin(angle), shade.astype(np.float32), _all())


def _waving(aspect: float, rng: random.Random) -> Scene:
    u, v, _, _ = _oblong(aspect, rng, (0.6, 0.88), 8)
    return _pale(rng), _wave(u, v, rng, 0.08, 1.8)


def _on_pole(aspect: float, rng: random.Random, canvas: np.ndarray, wave: tuple) -> Scene:
    width = SIDE * rng.uniform(0.62, 0.85)
    height = width / aspect
    left = rng.uniform(0.06, 0.12) * SIDE
    top = rng.uniform(0.06, max(0.07, 0.85 - height / SIDE)) * SIDE
    x, y = _pixels()
    view = _wave((x - left) / width, (y - top) / height, rng, *wave)
    thick = rng.uniform(6, 12)
    pole = (x >= left - thick) & (x < left) & (y >= top - 14)
    tone = rng.choice(((120, 90, 60), (150, 150, 155), (70, 70, 75)))
    rounded = 1.15 - 0.5 * np.abs((x - left) / thick + 0.5)
    canvas[pole] = (np.array(tone, np.float32) * rounded[..., None])[pole]
    ball = (x - left + thick / 2) ** 2 + (y - top + 16) ** 2 < (thick * 0.9) ** 2
    canvas[ball] = (200, 170, 60)
    return canvas, view


def _pole(aspect: float, rng: random.Random) -> Scene:
    return _on_pole(aspect, rng, _sky(rng), (0.07, 1.6))


def _billowing(aspect: float, rng: random.Random) -> Scene:
    """Strong wind: folds of two lengths, slanted, before a patterned ground."""
    canvas, view = _on_pole(aspect, rng, _patterned(rng), (0.09, 2.0))
    angle = 2 * math.pi * rng.uniform(2.4, 3.2) * (view.u + 0.5 * view.v) + rng.uniform(0, 6)
    view.v = view.v + 0.018 * np.sin(angle)
    view.shade = view.shade - 0.1 * np.cos(angle)
    return canvas, view


def _framed(aspect: float, rng: random.Random) -> Scene:
    u, v, width, height = _oblong(aspect, rng, (0.5, 0.8), 4)
    canvas = _pale(rng)
    grain = np.random.default_rng(rng.randrange(2**32)).normal(0, 5, (SIDE // 2, SIDE // 2, 1))
    canvas = canvas + np.repeat(np.repeat(grain, 2, axis=0), 2, axis=1)
    mount, frame = rng.uniform(10, 28), rng.uniform(8, 18)
    wood = _colour(rng, (0.15, 0.5), 0.5)
    for reach, colour in ((mount + frame, wood), (mount, np.array([250, 248, 242]))):
        across, down = reach / width, reach / height
        held = (u >= -across) & (u < 1 + across) & (v >= -down) & (v < 1 + down)
        canvas[held] = colour
    return canvas, View(u, v, _everywhere(), _all())


def _full(aspect: float, rng: random.Random) -> Scene:
    """The flag fills the picture, to the very edges."""
    x, y = _pixels()
    u = (x / SIDE - 0.5) * rng.uniform(0.95, 1.0) + 0.5
    v = (y / SIDE - 0.5) * rng.uniform(0.95, 1.0) + 0.5
    view = _wave(u, v, rng, 0.03, 1.2)
    view.v = np.clip(view.v, 0, 0.999)
    return _pale(rng), view


def _tilted(aspect: float, rng: random.Random) -> Scene:
    """Seen from the side: one end is nearer than the other."""
    u, v, _, _ = _oblong(aspect, rng, (0.55, 0.72), 6)
    slant, lift = rng.choice((-1, 1)) * rng.uniform(0.25, 0.45), rng.uniform(-0.12, 0.12)
    size = 1 + slant * (u - 0.5)
    bent = (u - 0.5) / size * (1 - slant**2 / 4) + 0.5
    risen = (v - 0.5 - lift * (u - 0.5)) / size * 0.9 + 0.5
    shade = 1.0 - 0.25 * np.abs(slant) * (bent if slant < 0 else 1 - bent)
    return _dark(rng), View(bent, risen, shade.astype(np.float32), _all())


def _badge(aspect: float, rng: random.Random) -> Scene:
    """A button with rounded corners, a rim and a gloss."""
    u, v, width, _ = _oblong(min(aspect, 1.5), rng, (0.65, 0.9), 8)
    canvas = _dark(rng)
    form = np.abs(2 * u - 1) ** 4.5 + np.abs(2 * v - 1) ** 4.5
    rim = 1 + 40 / width * 4.5
    canvas[form < rim] = _colour(rng, (0.75, 0.95), 0.2)
    shade = 1.04 - 0.12 * np.clip(v, 0, 1)
    return canvas, View(u, v, shade.astype(np.float32), form < 1)


def _stamp(aspect: float, rng: random.Random) -> Scene:
    """A postage stamp: a paper border with a toothed edge."""
    u, v, width, height = _oblong(aspect, rng, (0.55, 0.8), 14)
    canvas = _patterned(rng)
    border, teeth = rng.uniform(24, 40), rng.uniform(14, 20)
    x, y = (u - 0.5) * width, (v - 0.5) * height
    bite = 0.28 * teeth * np.cos(2 * math.pi * (x + y) / teeth)
    half = (width / 2 + border, height / 2 + border)
    paper = (np.abs(x) < half[0] + bite) & (np.abs(y) < half[1] + bite)
    canvas[paper] = (247, 243, 232)
    return canvas, View(u, v, _everywhere(rng.uniform(0.92, 1.0)), _all())


_SCENES: dict[str, Callable[[float, random.Random], Scene]] = {
    "plain": _plain,
    "waving": _waving,
    "pole": _pole,
    "framed": _framed,
    "full": _full,
    "tilted": _tilted,
    "badge": _badge,
    "stamp": _stamp,
    "billowing": _billowing,
}
