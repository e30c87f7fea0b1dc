"""From an OpenMoji SVG to pixels: the plain drawing, its main colour, and re-drawn variants.

An OpenMoji drawing is flat fills (group ``color``, ``skin``, ``hair``) under one black outline
(groups ``line…``). A model that only sees that style learns the style; variants look as if other
artists had drawn the same thing: outline thinner, thicker, tinted or gone, other shades, other
backgrounds, turned, moved, up to the very edge of a picture that is often small. Hue moves by at
most 6 degrees, so that a question about the colour keeps its answer.
"""

import colorsys
import io
import math
import random
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from llava_mole.errors import ConfigError

try:
    import resvg_py
except ImportError as error:
    raise ConfigError(
        "package 'resvg_py' is missing: it renders the OpenMoji drawings. "
        'Install it with: pip install -e ".[starter]"'
    ) from error

PIXELS = 224
VARIANT_PIXELS = (64, 96, 160)
"""Sides of the variants: quicker to draw, and other artists' pictures are often small too."""
VIEW_BOX = 72
MAX_HUE_SHIFT = 6.0 / 360.0

_HEX = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")
_STROKE_WIDTH = re.compile(r'(stroke-width=")([0-9.]+)(")')
_LINES = re.compile(r'<g\b(?=[^>]*\bid="line(?:-supplement)?")')
_ROOT = re.compile(r"<svg\b[^>]*>", re.DOTALL)


def render(svg: str, pixels: int = PIXELS) -> Image.Image:
    """The drawing on a transparent ground, RGBA, pixels × pixels."""
    data = resvg_py.svg_to_bytes(
        svg_string=svg, width=pixels, height=pixels, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(data)).convert("RGBA")


def on_ground(drawing: Image.Image, ground: Image.Image | None = None) -> Image.Image:
    """RGBA over an RGB ground (white if none): RGB."""
    if ground is None:
        ground = Image.new("RGB", drawing.size, "white")
    return Image.composite(drawing.convert("RGB"), ground, drawing.getchannel("A"))


def _hide(svg: str) -> str:
    """The same SVG with its line groups hidden: the fills alone."""
    return _LINES.sub('<g display="none"', svg)


# --- main colour --------------------------------------------------------------------------------


def main_colour(svg: str, *, share: float = 0.6, least_area: float = 0.04) -> str | None:
    """The colour name that fills at least ``share`` of the drawing's filled area, else None.

    Areas are counted on the fills alone, at 96 × 96; outlines do not count. None too if the fills
    cover less than ``least_area`` of the canvas, or if the leading shade lies between two names.
    """
    drawing = np.asarray(render(_hide(svg), 96)).reshape(-1, 4)
    solid = drawing[drawing[:, 3] > 200][:, :3]
    if len(solid) < least_area * 96 * 96:
        return None
    colours, counts = np.unique(solid, axis=0, return_counts=True)
    areas: dict[str | None, int] = {}
    for colour, count in zip(colours, counts, strict=True):
        name = colour_name(*(int(channel) for channel in colour))
        areas[name] = areas.get(name, 0) + int(count)
    name, area = max(areas.items(), key=lambda item: item[1])
    return name if area >= share * len(solid) else None


def colour_name(red: int, green: int, blue: int) -> str | None:
    """Everyday name of an sRGB colour; None for white and for shades between two names."""
    hue, lightness, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    hue *= 360
    chroma = max(red, green, blue) - min(red, green, blue)
    if chroma < 24:
        if lightness < 0.30:
            return "black"
        return "grey" if 0.42 < lightness < 0.86 else None
    if 15 <= hue < 45 and lightness < 0.46:
        return "brown" if max(red, green, blue) < 190 else ("orange" if hue < 33 else None)
    if hue < 12 or hue >= 350:
        return "pink" if lightness > 0.72 else ("red" if lightness > 0.25 else None)
    if hue < 34:
        return "orange" if saturation > 0.6 and lightness < 0.65 else None
    if hue < 48:
        return None
    if hue < 64:
        return "yellow"
    if hue < 70 or 170 <= hue < 190:
        return None
    if hue < 170:
        return "green"
    if hue < 240:
        return "blue"
    if hue < 262:
        return None
    if hue < 305:
        return "purple"
    return "pink" if lightness > 0.6 else None


# --- variants -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redrawing:
    """How one variant differs from the plain drawing."""

    outline: str
    """'black', 'tinted', 'thin', 'thick', 'none'."""
    line_colour: tuple[int, int, int]
    line_scale: float
    hue: float
    """Turns of the colour circle, at most ``MAX_HUE_SHIFT`` either way."""
    saturation: float
    brightness: float
    angle: float
    extent: float
    """Longer side of the turned drawing, as a share of the canvas."""
    place: tuple[float, float]
    """Where it lies in the room that is left, from -1 (left, top) to 1 (right, bottom)."""
    flip: bool
    ground: tuple[tuple[int, int, int], tuple[int, int, int]]
    """Two corner colours; equal for a plain ground."""
    ground_angle: int
    pixels: int
    """Side of the picture."""


OUTLINES = ("none", "thin", "none", "tinted", "thick", "none", "black")


def draw_lots(rng: random.Random, number: int, may_flip: bool) -> Redrawing:
    """Variant ``number`` of a picture: its outline goes round ``OUTLINES``, the rest is by lot."""
    outline = OUTLINES[number % len(OUTLINES)]
    tint = colorsys.hls_to_rgb(rng.random(), rng.uniform(0.05, 0.16), rng.uniform(0.1, 0.5))
    scales = {"thin": rng.uniform(0.35, 0.7), "thick": rng.uniform(1.3, 1.7)}
    first, second = _pastel(rng), _pastel(rng)
    style = rng.random()
    if style < 0.5:
        first = second = (255, 255, 255)
    elif style < 0.8:
        second = first
    return Redrawing(
        outline=outline,
        line_colour=_bytes(tint) if outline in ("tinted", "none", "thin") else (0, 0, 0),
        line_scale=scales.get(outline, rng.uniform(0.85, 1.15)),
        hue=rng.uniform(-MAX_HUE_SHIFT, MAX_HUE_SHIFT),
        saturation=rng.uniform(0.75, 1.25),
        brightness=rng.uniform(0.88, 1.1),
        angle=rng.uniform(-15, 15),
        extent=rng.uniform(0.7, 1.0),
        place=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
        flip=may_flip and rng.random() < 0.5,
        ground=(first, second),
        ground_angle=rng.randrange(0, 360, 45),
        pixels=rng.choice(VARIANT_PIXELS),
    )


def redraw(svg: str, how: Redrawing) -> Image.Image:
    """The variant as an RGB picture of ``how.pixels`` × ``how.pixels``."""
    changed = _transformed(_recoloured(svg, how), how)
    drawing = render(changed, how.pixels)
    ground = _ground(how)
    if how.outline == "none":
        drawing = _without_outline(drawing, render(_hide(changed), how.pixels), ground, how)
    return on_ground(drawing, ground)


def _recoloured(svg: str, how: Redrawing) -> str:
    line = "#{:02x}{:02x}{:02x}".format(*how.line_colour)

    def shade(match: re.Match[str]) -> str:
        text = match.group()[1:]
        text = "".join(c * 2 for c in text) if len(text) == 3 else text
        red, green, blue = (int(text[i : i + 2], 16) for i in (0, 2, 4))
        if red == green == blue == 0:
            return line
        hue, value_s, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        value = min(1.0, value * how.brightness)
        return "#{:02x}{:02x}{:02x}".format(
            *_bytes(
                colorsys.hsv_to_rgb((hue + how.hue) % 1, min(1.0, value_s * how.saturation), value)
            )
        )

    def width(match: re.Match[str]) -> str:
        return f"{match[1]}{float(match[2]) * how.line_scale:.3f}{match[3]}"

    # A shape without a fill is black by default: the default is set once, on the root.
    svg = _HEX.sub(shade, svg)
    svg = _ROOT.sub(
        lambda m: m.group() if " fill=" in m.group() else m.group()[:-1] + f' fill="{line}">',
        svg,
        1,
    )
    return _STROKE_WIDTH.sub(width, svg)


def _transformed(svg: str, how: Redrawing) -> str:
    left, top, right, bottom = render(svg, VIEW_BOX).getbbox() or (0, 0, VIEW_BOX, VIEW_BOX)
    cos, sin = (abs(f(math.radians(how.angle))) for f in (math.cos, math.sin))
    across, down = right - left, bottom - top
    across, down = across * cos + down * sin, across * sin + down * cos
    scale = how.extent * VIEW_BOX / max(across, down)
    x, y = (
        (VIEW_BOX + place * (VIEW_BOX - side * scale)) / 2
        for place, side in zip(how.place, (across, down), strict=True)
    )
    mirror = -scale if how.flip else scale
    move = (
        f"translate({x:.3f} {y:.3f}) rotate({how.angle:.2f}) scale({mirror:.4f} {scale:.4f}) "
        f"translate({-(left + right) / 2} {-(top + bottom) / 2})"
    )
    svg = _ROOT.sub(lambda match: f'{match.group()}<g transform="{move}">', svg, 1)
    end = svg.rindex("</svg>")
    return f"{svg[:end]}</g>{svg[end:]}"


def _without_outline(
    full: Image.Image, fills: Image.Image, ground: Image.Image, how: Redrawing
) -> Image.Image:
    """Drop the line along the silhouette of the fills; keep lines inside it and away from it.

    Where the fills alone would not carry the drawing (too small, or as pale as the ground), it is
    returned as it was.
    """
    alpha = fills.getchannel("A")
    solid = alpha.point(lambda level: 255 if level > 127 else 0)
    contrast = ImageChops.difference(on_ground(fills, ground), ground).convert("L")
    visible = sum(contrast.histogram(solid)[24:])
    area = solid.histogram()[255]
    if visible < 0.6 * area or area < 0.25 * sum(full.getchannel("A").histogram()[128:]):
        return full
    # A box blur above 0 is a dilation, one at 255 an erosion; both far cheaper than rank filters.
    reach = max(1, round(how.extent * full.width / 40))
    outer = solid.filter(ImageFilter.BoxBlur(reach)).point(lambda level: 255 if level > 0 else 0)
    inner = solid.filter(ImageFilter.BoxBlur(reach * 3 / 4)).point(
        lambda level: 255 if level >= 254 else 0
    )
    rim = ImageChops.subtract(outer, inner).filter(ImageFilter.GaussianBlur(full.width / 320))
    return Image.composite(fills, full, rim)


def _ground(how: Redrawing) -> Image.Image:
    first, second = how.ground
    if first == second:
        return Image.new("RGB", (how.pixels, how.pixels), first)
    side = how.pixels * 3 // 2  # room to turn the ramp without empty corners
    ramp = Image.linear_gradient("L").resize((side, side)).rotate(how.ground_angle)
    margin = (side - how.pixels) // 2
    ramp = ramp.crop((margin, margin, margin + how.pixels, margin + how.pixels))
    return Image.composite(
        Image.new("RGB", ramp.size, second), Image.new("RGB", ramp.size, first), ramp
    )


def _pastel(rng: random.Random) -> tuple[int, int, int]:
    return _bytes(colorsys.hls_to_rgb(rng.random(), rng.uniform(0.72, 0.95), rng.uniform(0.2, 0.8)))


def _bytes(colour: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * channel) for channel in colour)
    return red, green, blue
