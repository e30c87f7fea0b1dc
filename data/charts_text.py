"""Text on charts, in the fonts that a split owns.

Same method as ``llava_mole.typesetting`` (Arabic joined by ``arabic-reshaper``, ordered by
``python-bidi``, Pillow draws a plain row of glyphs), with the faces given.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from unicodedata import name as character_name

from arabic_reshaper import ArabicReshaper
from bidi.algorithm import get_display
from fontTools.ttLib import TTFont
from PIL import ImageDraw, ImageFont

if __package__:
    from data.charts_layouts import RGB, Fonts
else:
    from charts_layouts import RGB, Fonts

from llava_mole.errors import ConfigError, DataError


class Line:
    """One line of text, measured; sizes in pixels.

    Raises:
        DataError: the faces lack one of the characters.
        ConfigError: a font package is missing.
    """

    def __init__(self, text: str, fonts: Fonts, size: int, widest: float | None = None) -> None:
        shown = _visual(text)
        self.runs: list[tuple[str, ImageFont.FreeTypeFont]] = []
        for character in shown:
            font = _sized(_face(character, fonts, text), size)
            if self.runs and self.runs[-1][1] is font:
                self.runs[-1] = (self.runs[-1][0] + character, font)
            else:
                self.runs.append((character, font))
        self.width = sum(font.getlength(characters) for characters, font in self.runs)
        if widest is not None and self.width > widest and size > 8:
            smaller = Line(text, fonts, max(8, int(size * widest / self.width)))
            self.runs, self.width = smaller.runs, smaller.width

    def draw(self, pen: ImageDraw.ImageDraw, x: float, y: float, fill: RGB, side: str) -> None:
        """Vertically centred on ``y``; ``side`` of the text at ``x``: 'l', 'm' or 'r'."""
        x -= {"l": 0.0, "m": 0.5, "r": 1.0}[side] * self.width
        for characters, font in self.runs:
            pen.text((x, y), characters, fill=fill, font=font, anchor="lm")
            x += font.getlength(characters)


def _visual(text: str) -> str:
    if not any("\u0590" <= character <= "\u08ff" for character in text):
        return text
    return str(get_display(_reshaper().reshape(text), base_dir="R"))


@cache
def _reshaper() -> ArabicReshaper:
    return ArabicReshaper()


def _face(character: str, fonts: Fonts, text: str) -> Path:
    for place in (fonts.latin, fonts.arabic, fonts.chinese):
        if place is not None and ord(character) in _characters(_path(place)):
            return _path(place)
    raise DataError(
        f"no glyph for {character!r} (U+{ord(character):04X} {character_name(character, '')}) in "
        f"the fonts {fonts.name!r} of charts; it occurs in {text!r}"
    )


@cache
def _path(place: tuple[str, ...]) -> Path:
    package, *inside = place
    try:
        path = Path(str(files(package).joinpath(*inside)))
    except ImportError as error:
        raise ConfigError(
            f"package {package.replace('_', '-')!r} is missing: text on charts is set in its "
            'fonts. Install it with: pip install -e ".[starter]"'
        ) from error
    if not path.is_file():
        raise ConfigError(f"package {package!r} has no '{'/'.join(inside)}': another version?")
    return path


@cache
def _characters(path: Path) -> frozenset[int]:
    with TTFont(path, lazy=True) as font:
        return frozenset(font.getBestCmap())


@cache
def _sized(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
