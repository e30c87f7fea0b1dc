"""The sheet of a document, its colours, text and headings, and the finished picture.

Lengths are in half pixels of the finished picture: a sheet is drawn twice as large, turned a
little, laid on a ground and reduced. A box is (left, top, right, bottom).
"""

import colorsys
import math
import random
import re
from collections.abc import Callable

from PIL import Image, ImageChops, ImageDraw, ImageFilter

if __package__:
    from data.documents_typefaces import Setter
else:
    from documents_typefaces import Setter

from llava_mole.languages import RIGHT_TO_LEFT

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

CANVAS = 448
PIXELS = 224

COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-0.01, 0.01), (0.80, 0.95), (0.70, 0.88)),
    "orange": ((0.065, 0.085), (0.88, 1.0), (0.93, 1.0)),
    "yellow": ((0.135, 0.15), (0.80, 0.95), (0.95, 1.0)),
    "green": ((0.32, 0.40), (0.60, 0.90), (0.42, 0.65)),
    "blue": ((0.57, 0.63), (0.70, 0.95), (0.60, 0.90)),
    "purple": ((0.75, 0.79), (0.50, 0.80), (0.45, 0.68)),
    "pink": ((0.90, 0.94), (0.38, 0.52), (0.95, 1.0)),
    "brown": ((0.05, 0.075), (0.58, 0.75), (0.34, 0.48)),
}
"""Ranges of hue, saturation and value (0..1)."""


def shade(colour: str, rng: random.Random) -> Colour:
    """One of the shades that the colour's name covers."""
    hue, saturation, value = (rng.uniform(*span) for span in COLOURS[colour])
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def pale(colour: Colour, share: float = 0.82) -> Colour:
    """The colour mixed with white."""
    red, green, blue = (round(255 * share + channel * (1 - share)) for channel in colour)
    return red, green, blue


class Sheet:
    """A page being drawn: its picture, its colours and its line setter.

    Attributes:
        accent: the only colour beside black, white and grey.
        on_accent: black or white, what is legible on it.
        written: every text drawn so far, in order.
    """

    def __init__(
        self,
        size: tuple[int, int],
        setter: Setter,
        accent: Colour,
        rng: random.Random,
        filled: bool = False,
    ) -> None:
        self.setter, self.accent, self.rng = setter, accent, rng
        self.rtl = setter.language in RIGHT_TO_LEFT
        luminance = (299 * accent[0] + 587 * accent[1] + 114 * accent[2]) / 1000
        dark = rng.randrange(10, 45)
        self.ink: Colour = (dark, dark, dark)
        self.grey: Colour = (150, 150, 150)
        self.on_accent: Colour = self.ink if luminance > 140 else (255, 255, 255)
        light = rng.randrange(244, 256)
        self.paper: Colour = (light, light, light)
        self.image = Image.new("RGB", size, accent if filled else self.paper)
        self.mask = Image.new("L", size, 255)
        self.pen = ImageDraw.Draw(self.image)
        self.written: list[str] = []

    def text(
        self,
        box: Box,
        text: str,
        size: float,
        *,
        bold: bool = False,
        fill: Colour | None = None,
        align: str = "start",
    ) -> float:
        """One line in the middle of the box's height, smaller where it would not fit.

        Args:
            align: "start", "middle" or "end" of the box in the direction of reading.

        Returns:
            The width drawn.
        """
        left, top, right, bottom = box
        pixels = max(8, round(min(size, 0.8 * (bottom - top))))
        width = self.setter.width(text, pixels, bold)
        if width > right - left:
            pixels = max(6, int(pixels * (right - left) / width))
            width = self.setter.width(text, pixels, bold)
        share = {"start": 0.0, "middle": 0.5, "end": 1.0}[align]
        share = 1 - share if self.rtl else share
        x = left + share * (right - left - width)
        baseline = (top + bottom) / 2 + 0.36 * pixels
        self.setter.draw(self.pen, (x, baseline), text, pixels, fill or self.ink, bold)
        self.written.append(text)
        return width

    def paragraph(
        self, box: Box, text: str, size: int, *, indent: float = 0, align: str = "start"
    ) -> float:
        """Lines from the top of the box, broken to its width, smaller where they would leave it.

        Returns:
            Where the next paragraph would start.
        """
        left, top, right, bottom = box
        lines = self._broken(text, right - left, size, indent)
        while top + 1.45 * size * len(lines) > bottom and size > 8:
            size -= 1
            lines = self._broken(text, right - left, size, indent)
        for number, line in enumerate(lines):
            step = 0 if number else indent
            row = (left + (0 if self.rtl else step), top, right - (step if self.rtl else 0))
            self.text((*row, top + 1.4 * size), line, size, align=align)
            top += 1.45 * size
        return top

    def _broken(self, text: str, room: float, size: int, indent: float) -> list[str]:
        """Lines of words; a Chinese character is a word and keeps the mark after it."""
        chinese = self.setter.language == "zh"
        words = re.findall(r".[，。：]?", text) if chinese else text.split(" ")
        lines = [words[0]]
        for word in words[1:]:
            longer = f"{lines[-1]}{'' if chinese else ' '}{word}"
            if self.setter.width(longer, size) > room - (indent if len(lines) == 1 else 0):
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

    def split(self, box: Box, share: float, gap: float = 0) -> tuple[Box, Box]:
        """The box's start and end in the direction of reading; the start has ``share`` of it."""
        left, top, right, bottom = box
        if self.rtl:
            middle = right - share * (right - left)
            return (middle + gap / 2, top, right, bottom), (left, top, middle - gap / 2, bottom)
        middle = left + share * (right - left)
        return (left, top, middle - gap / 2, bottom), (middle + gap / 2, top, right, bottom)

    def outline(self, box: Box, fill: Colour | None = None, width: int = 2, radius: float = 0):
        """The box's border."""
        self.pen.rounded_rectangle(box, radius, outline=fill or self.grey, width=width)

    def fill(self, box: Box, fill: Colour, radius: float = 0) -> None:
        self.pen.rounded_rectangle(box, radius, fill=fill)

    def line(self, start: tuple[float, float], end: tuple[float, float], fill: Colour, width=2):
        self.pen.line((*start, *end), fill=fill, width=width)


def inset(box: Box, x: float, y: float | None = None) -> Box:
    """The box without a margin."""
    left, top, right, bottom = box
    y = x if y is None else y
    return left + x, top + y, right - x, bottom - y


def columns(box: Box, count: int, gap: float = 0) -> list[Box]:
    """``count`` equal parts from left to right."""
    left, top, right, bottom = box
    width = (right - left + gap) / count
    return [(left + n * width, top, left + (n + 1) * width - gap, bottom) for n in range(count)]


def row_boxes(sheet: Sheet, box: Box, count: int, most: int = 5) -> list[Box]:
    """One box a row, of one height."""
    left, top, right, bottom = box
    narrow, wide = (bottom - top) / most, (bottom - top) / max(count, 2)
    pitch = narrow if sheet.rng.random() < 0.5 else min(wide, 1.35 * narrow)
    return [(left, top + n * pitch, right, top + (n + 1) * pitch) for n in range(count)]


# --- headings -------------------------------------------------------------------------------------


def _band(sheet: Sheet, box: Box, text: str) -> None:
    sheet.fill(box, sheet.accent)
    sheet.text(inset(box, 10, 6), text, 46, bold=True, fill=sheet.on_accent, align="middle")


def _rule(sheet: Sheet, box: Box, text: str) -> None:
    left, top, right, bottom = box
    sheet.text((left, top, right, bottom - 14), text, 46, bold=True)
    sheet.fill((left, bottom - 14, right, bottom), sheet.accent)


def _frame(sheet: Sheet, box: Box, text: str) -> None:
    sheet.outline(box, sheet.accent, 8)
    sheet.text(inset(box, 16, 10), text, 44, bold=True, align="middle")


def _pill(sheet: Sheet, box: Box, text: str) -> None:
    sheet.fill(box, sheet.accent, (box[3] - box[1]) / 2)
    sheet.text(inset(box, 20, 6), text, 42, fill=sheet.on_accent, align="middle")


def _block(sheet: Sheet, box: Box, text: str) -> None:
    height = box[3] - box[1]
    block, rest = sheet.split(box, min(0.4, height / (box[2] - box[0])))
    sheet.fill(block, sheet.accent)
    sheet.text(inset(rest, 8, 4), text, 44, bold=True)


def _double(sheet: Sheet, box: Box, text: str) -> None:
    left, top, right, bottom = box
    sheet.fill((left, top, right, top + 10), sheet.accent)
    sheet.fill((left, bottom - 10, right, bottom), sheet.accent)
    sheet.text(inset(box, 4, 14), text, 44, align="middle")


HEADINGS: dict[str, Callable[[Sheet, Box, str], None]] = {
    "band": _band,
    "rule": _rule,
    "frame": _frame,
    "pill": _pill,
    "block": _block,
    "double": _double,
}


# --- the finished picture -------------------------------------------------------------------------


def laid_down(sheet: Sheet, rng: random.Random) -> Image.Image:
    """The sheet on a grey ground, a little turned and shifted, with a shadow; 224 × 224 RGB."""
    level = rng.choice((rng.randrange(40, 110), rng.randrange(150, 225)))
    ramp = Image.linear_gradient("L").rotate(rng.randrange(0, 360, 90)).resize((CANVAS, CANVAS))
    ground = ramp.point([level + round((step - 128) * 0.12) for step in range(256)]).convert("RGB")
    page, mask = _turned(sheet, rng)
    shadow = Image.new("L", (CANVAS, CANVAS))
    shadow.paste(mask.point(lambda level: level // 3), (5, 6))
    shadow = shadow.filter(ImageFilter.BoxBlur(5))
    ground = ImageChops.subtract(ground, Image.merge("RGB", (shadow,) * 3))
    ground.paste(page, (0, 0), mask)
    return ground.reduce(CANVAS // PIXELS)


def _turned(sheet: Sheet, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """Sheet and mask, turned and shifted within the canvas, smaller where they would leave it."""
    width, height = sheet.image.size
    angle = math.radians(rng.uniform(-5, 5))
    cos, sin = math.cos(angle), math.sin(angle)
    across = width * cos + height * abs(sin)
    down = height * cos + width * abs(sin)
    scale = min(1.0, (CANVAS - 8) / max(across, down)) * rng.uniform(0.95, 1)
    x, y = (
        CANVAS / 2 + rng.uniform(-0.3, 0.3) * (CANVAS - scale * side) for side in (across, down)
    )
    cos, sin = cos / scale, sin / scale
    # Pillow wants the way back: a point of the canvas to one of the sheet.
    way = (cos, sin, width / 2 - cos * x - sin * y, -sin, cos, height / 2 + sin * x - cos * y)
    size = (CANVAS, CANVAS)
    page = sheet.image.transform(size, Image.Transform.AFFINE, way, Image.Resampling.BICUBIC)
    mask = sheet.mask.transform(size, Image.Transform.AFFINE, way, Image.Resampling.BILINEAR)
    return page, mask
