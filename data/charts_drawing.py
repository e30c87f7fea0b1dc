"""From a planned chart to 224 × 224 pixels, with Pillow alone.

Drawn at twice the size and halved, which smooths edges. A few milliseconds a chart.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

if __package__:
    from data.charts_layouts import BY_NAME, FONTS_BY_NAME, RGB, Layout, mixed, shade
    from data.charts_plan import Chart
    from data.charts_questions import title
    from data.charts_text import Line
else:
    from charts_layouts import BY_NAME, FONTS_BY_NAME, RGB, Layout, mixed, shade
    from charts_plan import Chart
    from charts_questions import title
    from charts_text import Line

PIXELS = 224
SCALE = 2
SIDE = PIXELS * SCALE


@dataclass
class Box:
    """A rectangle in drawing pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def tuple(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.right, self.bottom


def draw(chart: Chart, seed: int) -> Image.Image:
    """The picture, RGB.

    Raises:
        DataError: no font for a character of its text.
    """
    return _Drawing(chart, random.Random(f"{seed}:{chart.key}:drawing")).image()


class _Drawing:
    def __init__(self, chart: Chart, rng: random.Random) -> None:
        self.chart, self.rng = chart, rng
        self.look: Layout = BY_NAME[chart.layout]
        self.fonts = FONTS_BY_NAME[chart.font]
        self.canvas = Image.new("RGB", (SIDE, SIDE), self.look.ground)
        self.pen = ImageDraw.Draw(self.canvas)
        self.size = rng.randint(20, 26)
        """Of ordinary text, in drawing pixels."""
        self.colours: list[RGB] = [shade(name, rng) for name in chart.colours]

    def image(self) -> Image.Image:
        box = self._title(self._margins())
        kind = self.chart.drawing
        if kind in ("pie", "donut"):
            self._pie(self._legend(box))
        elif kind == "heatmap":
            self._heatmap(box)
        else:
            self._plot(self._legend(box) if len(self.colours) > 1 else box)
        return self.canvas.reduce(SCALE)

    # --- around the marks ---

    def _margins(self) -> Box:
        lot = self.rng.uniform
        return Box(lot(8, 34), lot(8, 30), SIDE - lot(8, 34), SIDE - lot(8, 30))

    def _title(self, box: Box) -> Box:
        text = title(self.chart.title, self.chart.language)
        line = Line(text, self.fonts, self.rng.randint(26, 36), widest=box.width)
        height = self.rng.randint(42, 54)
        x, side = (box.left, "l") if self.look.title == "left" else (SIDE / 2, "m")
        if self.look.title == "bottom":
            line.draw(self.pen, x, box.bottom - height / 2, self.look.ink, side)
            return Box(box.left, box.top, box.right, box.bottom - height)
        line.draw(self.pen, x, box.top + height / 2, self.look.ink, side)
        return Box(box.left, box.top + height, box.right, box.bottom)

    def _legend(self, box: Box) -> Box:
        """Chips with the marks' names; the room that is left."""
        if self.look.legend == "none" or not self.chart.labels:
            return box
        chip, gap = self.size * 0.7, self.size * 1.5
        entries = list(zip(self.colours, self.chart.labels, strict=True))
        if self.look.legend == "right":
            lines = [Line(_short(label), self.fonts, self.size, 60) for _, label in entries]
            room = max(line.width for line in lines) + chip + 14
            y = (box.top + box.bottom - gap * len(entries)) / 2
            for (colour, _), line in zip(entries, lines, strict=True):
                x = box.right - room + 8
                self.pen.rectangle((x, y, x + chip, y + chip), fill=colour)
                line.draw(self.pen, x + chip + 6, y + chip / 2, self.look.ink, "l")
                y += gap
            return Box(box.left, box.top, box.right - room, box.bottom)
        place = box.width / len(entries)
        y = box.top + 4 if self.look.legend == "top" else box.bottom - chip - 4
        for number, (colour, label) in enumerate(entries):
            x = box.left + place * number
            self.pen.rectangle((x, y, x + chip, y + chip), fill=colour)
            line = Line(_short(label), self.fonts, self.size, place - chip - 6)
            line.draw(self.pen, x + chip + 4, y + chip / 2, self.look.ink, "l")
        if self.look.legend == "top":
            return Box(box.left, box.top + gap, box.right, box.bottom)
        return Box(box.left, box.top, box.right, box.bottom - gap)

    def _field(self, box: Box, lying: bool, low: float, high: float) -> Box:
        """Value axis with its numbers, grid and frame; returns the plot's field."""
        ticks = _ticks(low, high, self.rng.randint(3, 5))
        lines = [Line(_number(tick), self.fonts, self.size - 3) for tick in ticks]
        room = max(line.width for line in lines) + 8
        below = self.size * 1.5
        if lying:
            names = [Line(_short(n), self.fonts, self.size - 2, 90) for n in self.chart.labels]
            room = max((line.width for line in names), default=0) + 8
        on_right = self.look.axis == "right" and not lying
        field = Box(
            box.left + (6 if on_right else room),
            box.top + 6,
            box.right - (room if on_right else 8),
            box.bottom - below,
        )
        if self.look.panel is not None:
            self.pen.rectangle(field.tuple(), fill=self.look.panel)
        back = self.look.panel or self.look.ground
        faint = (255, 255, 255) if self.look.panel == (229, 229, 229) else None
        faint = faint or mixed(back, self.look.ink, 0.22)
        places = []
        for tick, line in zip(ticks, lines, strict=True):
            share = (tick - low) / (high - low)
            if lying:
                x = field.left + share * field.width
                line.draw(self.pen, x, field.bottom + below / 2, self.look.ink, "m")
                places.append(x)
            else:
                y = field.bottom - share * field.height
                x = field.right + 6 if on_right else field.left - 6
                line.draw(self.pen, x, y, self.look.ink, "l" if on_right else "r")
                places.append(y)
        self._grid(field, places, lying, faint)
        return field

    def _grid(self, field: Box, places: Sequence[float], lying: bool, faint: RGB) -> None:
        if self.look.grid == "bands":
            pale = mixed(self.look.ground, faint, 0.5)
            for first, second in zip(places[::2], places[1::2], strict=False):
                near, far = sorted((first, second))
                band = (near, field.top, far, field.bottom)
                self.pen.rectangle(
                    band if lying else (field.left, near, field.right, far), fill=pale
                )
            return
        dash, hole = {"lines": (SIDE, 0), "dashes": (10, 8), "dots": (3, 6)}.get(
            self.look.grid, (0, 0)
        )
        if dash == 0:
            return
        for place in places:
            start, end = (field.top, field.bottom) if lying else (field.left, field.right)
            while start < end:
                stop = min(end, start + dash)
                line = (place, start, place, stop) if lying else (start, place, stop, place)
                self.pen.line(line, fill=faint, width=2)
                start = stop + hole

    def _frame(self, field: Box, lying: bool) -> None:
        left, top, right, bottom = field.tuple()
        ink, pen = self.look.ink, self.pen
        if self.look.frame == "box":
            pen.rectangle((left, top, right, bottom), outline=ink, width=3)
        if self.look.frame in ("base", "axes"):
            pen.line((left, top, left, bottom) if lying else (left, bottom, right, bottom), ink, 3)
        if self.look.frame == "axes":
            side = right if self.look.axis == "right" else left
            pen.line((left, bottom, right, bottom) if lying else (side, top, side, bottom), ink, 3)

    # --- charts with axes ---

    def _plot(self, box: Box) -> None:
        kind, values = self.chart.drawing, self.chart.values
        lying = kind == "rows"
        heights = values[-1]
        low, high = min(heights), max(heights)
        if kind in ("bars", "plain", "rows"):
            low, high = 0.0, high * self.rng.uniform(1.03, 1.2)
        else:
            room = (high - low) or 1.0
            low, high = low - room * self.rng.uniform(0.05, 0.2), high + room * 0.08
        field = self._field(box, lying, low, high)
        shares = [(value - low) / (high - low) for value in heights]
        if kind == "scatter":
            self._dots(field, shares)
        elif kind in ("line", "area"):
            self._curve(field, shares)
        else:
            self._bars(field, shares, lying)
        self._frame(field, lying)

    def _bars(self, field: Box, shares: Sequence[float], lying: bool) -> None:
        place = (field.height if lying else field.width) / len(shares)
        width = place * self.rng.uniform(*self.look.bar)
        width = min(width, SIDE * 0.24)
        for number, share in enumerate(shares):
            middle = place * (number + 0.5)
            colour = self.colours[number % len(self.colours)]
            name = Line(_short(self.chart.labels[number]), self.fonts, self.size - 2, place - 4)
            if lying:
                y = field.top + middle
                bar = (field.left, y - width / 2, field.left + share * field.width, y + width / 2)
                name = Line(_short(self.chart.labels[number]), self.fonts, self.size - 2, 90)
                name.draw(self.pen, field.left - 6, y, self.look.ink, "r")
            else:
                x = field.left + middle
                top = field.bottom - share * field.height
                bar = (x - width / 2, top, x + width / 2, field.bottom)
                name.draw(self.pen, x, field.bottom + self.size * 0.8, self.look.ink, "m")
            self._bar(bar, colour, lying)

    def _bar(self, bar: tuple[float, float, float, float], colour: RGB, lying: bool) -> None:
        left, top, right, bottom = bar
        fill, pen = self.look.fill, self.pen
        if fill == "rounded":
            radius = min(14.0, (right - left) / 2, (bottom - top) / 2)
            pen.rounded_rectangle(bar, radius, fill=colour)
        elif fill == "outlined":
            pen.rectangle(bar, fill=colour, outline=self.look.ink, width=3)
        elif fill == "shadow":
            dark = mixed(self.look.ground, (0, 0, 0), 0.35)
            pen.rectangle((left + 7, top + (7 if lying else -7), right + 7, bottom), fill=dark)
            pen.rectangle(bar, fill=colour)
        elif fill == "gradient":
            length = (right - left) if lying else (bottom - top)
            for step in range(8):
                tone = mixed(colour, (255, 255, 255), 0.3 * step / 7)
                first, second = length * step / 8, length * (step + 1) / 8
                part = (left + first, top, left + second, bottom)
                pen.rectangle(
                    part if lying else (left, top + first, right, top + second), fill=tone
                )
        else:
            pen.rectangle(bar, fill=colour)
            if fill == "striped":
                self._stripes(bar, mixed(colour, (255, 255, 255), 0.35))

    def _stripes(self, bar: tuple[float, float, float, float], tone: RGB) -> None:
        left, top, right, bottom = (round(edge) for edge in bar)
        width, height = right - left, bottom - top
        if width < 2 or height < 2:
            return
        mask = Image.new("L", (width, height))
        pen = ImageDraw.Draw(mask)
        for start in range(-height, width, 20):
            pen.line((start, height, start + height, 0), fill=255, width=6)
        self.canvas.paste(tone, (left, top), mask)

    def _curve(self, field: Box, shares: Sequence[float]) -> None:
        step = field.width / (len(shares) - 1)
        points = [
            (field.left + step * number, field.bottom - share * field.height)
            for number, share in enumerate(shares)
        ]
        colour = self.colours[0]
        if self.chart.drawing == "area":
            outline = [(field.left, field.bottom), *points, (field.right, field.bottom)]
            pale = self.look.fill in ("outlined", "gradient", "striped")
            self.pen.polygon(outline, fill=mixed(colour, self.look.ground, 0.35 if pale else 0.0))
        width = round(self.rng.uniform(*self.look.stroke) * SCALE)
        if self.chart.drawing == "line" or self.look.fill != "flat":
            self.pen.line(points, fill=colour, width=width, joint="curve")
        if self.look.marked and self.chart.drawing == "line":
            for x, y in points:
                self._point(x, y, width * 1.3, colour)
        labels = self.chart.labels
        for number in (0, len(labels) // 2, len(labels) - 1):
            line = Line(_short(labels[number]), self.fonts, self.size - 3, field.width / 3)
            x = min(max(points[number][0], field.left + line.width / 2), SIDE - 4 - line.width / 2)
            line.draw(self.pen, x, field.bottom + self.size * 0.8, self.look.ink, "m")

    def _dots(self, field: Box, shares: Sequence[float]) -> None:
        across = np.asarray(self.chart.values[0])
        low, width = across.min(), float(np.ptp(across)) or 1.0
        radius = self.rng.uniform(4.5, 9.0)
        for x, share in zip((across - low) / width, shares, strict=True):
            self._point(
                field.left + (0.04 + 0.92 * float(x)) * field.width,
                field.bottom - share * field.height,
                radius,
                self.colours[0],
            )

    def _point(self, x: float, y: float, r: float, colour: RGB) -> None:
        pen = self.pen
        if self.look.point == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        elif self.look.point == "diamond":
            pen.polygon(
                [(x, y - 1.3 * r), (x + 1.3 * r, y), (x, y + 1.3 * r), (x - 1.3 * r, y)], colour
            )
        elif self.look.point == "cross":
            pen.line((x - r, y - r, x + r, y + r), fill=colour, width=5)
            pen.line((x - r, y + r, x + r, y - r), fill=colour, width=5)
        elif self.look.point == "ring":
            back = self.look.panel or self.look.ground
            pen.ellipse((x - r, y - r, x + r, y + r), fill=back, outline=colour, width=4)
        else:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    # --- charts without axes ---

    def _pie(self, box: Box) -> None:
        values = self.chart.values[0]
        radius = min(box.width, box.height) / 2 * self.rng.uniform(0.82, 0.94)
        free_x, free_y = box.width / 2 - radius, box.height / 2 - radius
        x = (box.left + box.right) / 2 + self.rng.uniform(-0.7, 0.7) * free_x
        y = (box.top + box.bottom) / 2 + self.rng.uniform(-0.5, 0.5) * free_y
        look, start = self.look.slices, self.rng.uniform(0, 360)
        pulled = self.rng.randrange(len(values)) if look == "apart" else -1
        if look == "apart":
            radius *= 0.92
        for number, (value, colour) in enumerate(zip(values, self.colours, strict=True)):
            end = start + 360 * value / sum(values)
            away = 0.09 * radius if number == pulled else 0.0
            middle = math.radians((start + end) / 2)
            cx, cy = x + away * math.cos(middle), y + away * math.sin(middle)
            circle = (cx - radius, cy - radius, cx + radius, cy + radius)
            line = {"gaps": self.look.ground, "outlined": self.look.ink}.get(look)
            self.pen.pieslice(circle, start, end, fill=colour, outline=line, width=4)
            start = end
        if self.chart.drawing == "donut":
            hole = radius * self.rng.uniform(0.4, 0.6)
            circle = (x - hole, y - hole, x + hole, y + hole)
            self.pen.ellipse(circle, fill=self.look.ground)

    def _heatmap(self, box: Box) -> None:
        values = np.asarray(self.chart.values)
        below = self.size * 1.5
        field = Box(box.left + 4, box.top + 4, box.right - 4, box.bottom - below)
        shares = (values - values.min()) / np.ptp(values)
        pale = mixed(self.colours[0], (255, 255, 255), 0.88)
        deep = mixed(self.colours[0], (0, 0, 0), 0.25)
        rows, columns = values.shape
        across, down = field.width / columns, field.height / rows
        gap = {"gaps": 3, "outlined": 2}.get(self.look.slices, 0)
        for row in range(rows):
            for column in range(columns):
                left, top = field.left + column * across, field.top + row * down
                cell = (left + gap, top + gap, left + across - gap, top + down - gap)
                self.pen.rectangle(cell, fill=mixed(pale, deep, float(shares[row, column])))
        for number, label in enumerate(self.chart.labels):
            if number % 2 == 0:
                line = Line(_short(label), self.fonts, self.size - 4, across * 2 - 4)
                x = min(
                    max(field.left + (number + 0.5) * across, line.width / 2), SIDE - line.width / 2
                )
                line.draw(self.pen, x, field.bottom + below / 2, self.look.ink, "m")


def _short(label: str) -> str:
    return label[:10]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between the two, about ``count`` of them."""
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


def _number(value: float) -> str:
    """Short, with k, M or G for thousands and more (SI, the same in all six languages)."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            scale = 1e3 if letter == "k" else unit
            return f"{value / scale:g}{letter}"
    return f"{value:.4g}"
