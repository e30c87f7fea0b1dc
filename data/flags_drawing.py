"""A flag from SVG to pixels, repainted if wished, and what is to be seen on it: colours, stripes.

Both artists use flat fills. OpenMoji's black outline is left out, so that a flag is the same oblong
whoever drew it. A *repainted* flag keeps the pattern and wears colours drawn by lot: it is
nobody's, and its colours cannot be known by heart. What is asked about colours and stripes is read
off the drawing itself, where a careful person would not argue: shades between two names have none.
"""

import colorsys
import io
import random
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

if __package__:
    from data import flags_catalogue as catalogue
else:
    import flags_catalogue as catalogue

from llava_mole.errors import ConfigError

try:
    import resvg_py
except ImportError as error:
    raise ConfigError(
        "package 'resvg_py' is missing: it renders the flags. "
        'Install it with: pip install -e ".[starter]"'
    ) from error

COLOURS = ("red", "blue", "green", "yellow", "white", "black")

_LINE = re.compile(r'<g\b(?=[^>]*\bid="line")')
_OUTLINE = re.compile(
    r'id="line">\s*<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"'
)
_SCALE = 5
"""Pixels per unit of OpenMoji's canvas, 72 units wide."""


@lru_cache(maxsize=512)
def flat(artist: str, code: str) -> Image.Image:
    """The flag alone, RGBA, cut to its own edges; transparent where a flag is no oblong (Nepal)."""
    svg = catalogue.svg_of(artist, code)
    if artist == "flag-icon-css":
        return _rendered(svg, 320, 240)
    outline = _OUTLINE.search(svg)
    if outline is None:
        drawing = _rendered(svg, 72 * _SCALE, 72 * _SCALE)
        return drawing.crop(drawing.getbbox())
    drawing = _rendered(_LINE.sub('<g display="none"', svg), 72 * _SCALE, 72 * _SCALE)
    # Some fills reach out under the line, others end short of it.
    x, y, width, height = (round(float(number) * _SCALE) for number in outline.groups())
    solid = drawing.getchannel("A").point(lambda level: 255 if level > 200 else 0)
    left, top, right, bottom = solid.getbbox() or (x, y, x + width, y + height)
    return drawing.crop((max(x, left), max(y, top), min(x + width, right), min(y + height, bottom)))


def _rendered(svg: str, width: int, height: int) -> Image.Image:
    data = resvg_py.svg_to_bytes(svg_string=svg, width=width, height=height, skip_system_fonts=True)
    return Image.open(io.BytesIO(data)).convert("RGBA")


_SHADES = {
    "red": ((-8, 8), (0.40, 0.50), (0.75, 1.0)),
    "blue": ((215, 235), (0.28, 0.45), (0.65, 1.0)),
    "green": ((95, 150), (0.24, 0.42), (0.5, 1.0)),
    "yellow": ((50, 60), (0.48, 0.58), (0.85, 1.0)),
    "white": ((0, 360), (0.96, 1.0), (0.0, 0.3)),
    "black": ((0, 360), (0.02, 0.09), (0.0, 0.4)),
}
"""Hue in degrees, lightness and saturation that a repainted flag's colours are drawn from."""


@lru_cache(maxsize=64)
def repainted(artist: str, code: str, lot: int) -> Image.Image:
    """The flag's pattern in other colours, one for each of its own, RGB without soft edges."""
    pixels = np.asarray(flat(artist, code).convert("RGB"))
    places = _places(pixels, _palette(pixels[::2, ::2])[:6])
    rng = random.Random(f"{code}:{lot}")
    count = int(places.max()) + 1
    names = [COLOURS[lot % len(COLOURS)]]  # the largest area takes the six colours in turn
    names += rng.sample([colour for colour in COLOURS if colour != names[0]], count - 1)
    shades = []
    for name in names:
        hue, lightness, saturation = (rng.uniform(*span) for span in _SHADES[name])
        shades.append(colorsys.hls_to_rgb(hue / 360 % 1, lightness, saturation))
    return Image.fromarray((np.array(shades) * 255).round().astype(np.uint8)[places])


def _palette(pixels: np.ndarray) -> np.ndarray:
    """Colours that cover 2 % or more, (colours, 3), the largest area first."""
    colours, counts = _counted(pixels)
    order = np.argsort(-counts, kind="stable")
    return colours[[place for place in order if counts[place] >= 0.02 * counts.sum()]]


def _counted(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different colours, (colours, 3), and how many pixels have each."""
    packed = pixels.reshape(-1, 3).astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    numbers, counts = np.unique(packed, return_counts=True)
    return np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=1).astype(int), counts


def _places(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """For each pixel the place of the nearest colour in the palette, (height, width)."""
    colours = palette.astype(np.float32)
    return ((colours**2).sum(-1) - 2 * pixels.astype(np.float32) @ colours.T).argmin(-1)


@dataclass(frozen=True)
class Facts:
    """What can be seen on a flag."""

    present: tuple[str, ...]
    """Colours that nobody can miss: 6 % of the flag or more."""
    absent: tuple[str, ...]
    """Colours of which there is no trace, nor of a shade that could pass for them."""
    main: str | None
    """The colour that covers most of it: nearly half of the flag, and far more than any other."""
    stripes: str | None
    """'horizontal' or 'vertical', if the whole flag is made of such stripes."""


@lru_cache(maxsize=512)
def facts(artist: str, code: str, lot: int | None = None) -> Facts:
    """What can be seen on a flag as drawn by the artist, or as repainted by lot."""
    drawn = flat(artist, code) if lot is None else repainted(artist, code, lot)
    if not is_oblong(artist, code):
        return Facts((), (), None, None)
    pixels = np.asarray(drawn.convert("RGB").resize((96, 64), Image.Resampling.NEAREST))
    colours, counts = _counted(pixels)
    sure = dict.fromkeys(COLOURS, 0.0)
    maybe = dict.fromkeys(COLOURS, 0.0)
    for colour, count in zip(colours, counts, strict=True):
        possible = colour_names(*(int(channel) for channel in colour))
        for name in possible:
            maybe[name] += count / counts.sum()
            if len(possible) == 1:
                sure[name] += count / counts.sum()
    main = max(COLOURS, key=lambda name: sure[name])
    others = [maybe[name] for name in COLOURS if name != main]
    leads = sure[main] >= 0.45 and sure[main] - max(others) >= 0.1
    return Facts(
        present=tuple(colour for colour in COLOURS if sure[colour] >= 0.06),
        absent=tuple(colour for colour in COLOURS if maybe[colour] <= 0.001),
        main=main if leads else None,
        stripes=_stripes(pixels),
    )


def is_oblong(artist: str, code: str) -> bool:
    """Whether the flag covers its whole oblong (Nepal's does not)."""
    return bool((np.asarray(flat(artist, code))[..., 3] < 128).mean() < 0.01)


def colour_names(red: int, green: int, blue: int) -> tuple[str, ...]:
    """The names that an sRGB colour could go by: one if it is beyond dispute, none if it has none.

    Light blue is none of them: Russian has another word for it than for blue.
    """
    hue, lightness, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    hue *= 360
    chroma = max(red, green, blue) - min(red, green, blue)
    if chroma < 28:
        if lightness > 0.93:
            return ("white",)
        return ("white",) * 2 if lightness > 0.8 else ("black",) if lightness < 0.15 else ()
    if lightness < 0.12:
        return ("black", "black")
    if hue >= 340 or hue < 14:
        return ("red",) if 0.34 < lightness < 0.66 and saturation > 0.45 else ("red", "red")
    if hue < 46:
        return ("yellow", "red")  # orange, gold, brown
    if hue < 66:
        return ("yellow",) if lightness > 0.4 and saturation > 0.7 else ("yellow", "white")
    if hue < 78:
        return ("yellow", "green")
    if hue < 172:
        return ("green",) if lightness < 0.55 else ("green", "white")
    if hue < 190:
        return ("green", "blue")
    if hue < 252:
        light = 0.2126 * _linear(red) + 0.7152 * _linear(green) + 0.0722 * _linear(blue)
        return ("blue",) if light < 0.2 else ("blue", "blue")
    return ("blue", "red")


def _linear(channel: int) -> float:
    share = channel / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


def _stripes(pixels: np.ndarray) -> str | None:
    """Whether rows, or columns, of one colour each make up the flag, in two bands or more."""
    palette = _palette(pixels)
    if len(palette) < 2:
        return None
    grid = _places(pixels, palette)
    rows, across = _explained(grid)
    columns, down = _explained(grid.T)
    if rows >= 0.851 and across >= 2 and rows - columns >= 0.12:
        return "horizontal"
    if columns >= 0.851 and down >= 2 and columns - rows >= 0.12:
        return "vertical"
    return None


def _explained(grid: np.ndarray) -> tuple[float, int]:
    """(share of a row in its leading colour, bands of at least 8 % of all rows)."""
    counts = np.stack([(grid == colour).sum(1) for colour in range(grid.max() + 1)], axis=1)
    leading = counts.argmax(1)
    starts = np.flatnonzero(np.diff(leading, prepend=-1))
    lengths = np.diff(np.append(starts, len(leading)))
    return float(counts.max(1).sum() / grid.size), int((lengths >= 0.08 * len(leading)).sum())
