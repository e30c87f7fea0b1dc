"""Text on pictures in six scripts: fonts from packages, Arabic joined and in the right order.

What a machine has installed plays no part, so a picture looks the same everywhere: Noto fonts come
from the packages of the ``starter`` extra, Arabic letters are joined by ``arabic-reshaper``,
directions are resolved by ``python-bidi``, and Pillow draws what is then a plain row of glyphs.
(Pillow's own shaper needs a system library that a bare machine lacks.) Arabic vowel signs, optional
in writing, are not drawn.
"""

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from unicodedata import name as character_name
from unicodedata import normalize

from PIL import Image, ImageDraw, ImageFont

from llava_mole.errors import ConfigError, DataError
from llava_mole.languages import RIGHT_TO_LEFT

Colour = str | tuple[int, int, int]

LINE_HEIGHT = 1.5
"""Distance between baselines, in font sizes."""
ASCENT = 1.08
"""Top of a line to its baseline, in font sizes; one for all fonts, so that scripts share lines."""


def draw_text(
    image: Image.Image,
    xy: tuple[float, float],
    text: str,
    *,
    size: int,
    fill: Colour = "black",
    language: str = "en",
    anchor: str = "la",
    max_width: float | None = None,
) -> tuple[int, int, int, int]:
    """Draw a text, of one or more lines, on an image.

    Args:
        image: drawn on in place.
        xy: where the anchor goes, in pixels.
        size: font size in pixels.
        language: decides the first font and, for Arabic, that lines run from the right.
        anchor: two letters as in Pillow: left, middle or right of the lines (``l``, ``m``, ``r``),
            then top, middle or bottom of the block (``a``, ``m``, ``d``).
        max_width: lines are broken to fit this many pixels; None keeps the text's own lines.

    Returns:
        The block drawn: left, top, right, bottom.

    Raises:
        DataError: no font has one of the characters; names the character and the fonts.
        ConfigError: a font package is missing.
    """
    if len(anchor) != 2 or anchor[0] not in "lmr" or anchor[1] not in "amd":
        raise ConfigError(f"anchor {anchor!r}: expected one of l, m, r and then one of a, m, d")
    lines = [_Line(line, size, language) for line in _broken(text, size, language, max_width)]
    width = max(line.width for line in lines)
    height = len(lines) * LINE_HEIGHT * size
    x, y = xy
    y -= {"a": 0.0, "m": height / 2, "d": height}[anchor[1]]
    share = {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]]
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        baseline = y + (ASCENT + number * LINE_HEIGHT) * size
        line.draw(pen, x - share * line.width, baseline, fill)
    left = x - share * width
    return round(left), round(y), round(left + width), round(y + height)


def text_size(
    text: str, *, size: int, language: str = "en", max_width: float | None = None
) -> tuple[int, int]:
    """Width and height in pixels of the block that :func:`draw_text` would draw. Same errors."""
    lines = [_Line(line, size, language) for line in _broken(text, size, language, max_width)]
    return round(max(line.width for line in lines)), round(len(lines) * LINE_HEIGHT * size)


class _Line:
    """One line as runs of glyphs from left to right, each run with its font."""

    def __init__(self, text: str, size: int, language: str) -> None:
        visual = visual_order(text, language)
        fonts = [_font_of(character, language, text) for character in visual]
        self._runs = [
            ("".join(character for character, _ in run), _sized(path, size))
            for path, run in groupby(zip(visual, fonts, strict=True), key=lambda pair: pair[1])
        ]
        self.width = sum(font.getlength(characters) for characters, font in self._runs)

    def draw(self, pen: ImageDraw.ImageDraw, x: float, baseline: float, fill: Colour) -> None:
        for characters, font in self._runs:
            pen.text((x, baseline), characters, fill=fill, font=font, anchor="ls")
            x += font.getlength(characters)


def visual_order(text: str, language: str) -> str:
    """The characters of one line as they stand from left to right, Arabic ones joined."""
    if all(ord(character) < 0x0590 for character in text):
        return text
    reshape, get_display = _arabic()
    base = "R" if language in RIGHT_TO_LEFT else "L"
    return str(get_display(reshape(text), base_dir=base))


def _broken(text: str, size: int, language: str, max_width: float | None) -> list[str]:
    """The text's lines, broken further where wider than ``max_width``."""
    lines = normalize("NFC", text.replace("\t", " ")).split("\n")
    if max_width is None:
        return lines
    return [part for line in lines for part in _wrapped(line, size, language, max_width)]


def _wrapped(line: str, size: int, language: str, max_width: float) -> list[str]:
    """Greedy breaking at spaces, between Chinese characters, inside a word only if it must be."""
    wrapped, current = [], ""
    for piece in _pieces(line):
        if _Line((current + piece).strip(), size, language).width <= max_width:
            current += piece
            continue
        if current.strip():
            wrapped.append(current.strip())
        current = piece.lstrip()
        while len(current) > 1 and _Line(current, size, language).width > max_width:
            fits = len(current) - 1
            while fits > 1 and _Line(current[:fits], size, language).width > max_width:
                fits -= 1
            wrapped.append(current[:fits])
            current = current[fits:]
    return [*wrapped, current.strip()] if current.strip() or not wrapped else wrapped


def _pieces(line: str) -> list[str]:
    """Words with the space before them; a Chinese character is a word and keeps closing marks."""
    pieces: list[str] = []
    for character in line:
        before = pieces[-1][-1] if pieces else " "
        wide = "\u2e80" <= character <= "\u9fff"
        starts = character.isspace() or wide or "\u2e80" <= before <= "\u9fff"
        if not pieces or (starts and character not in "，。、；：？！”’》）)]?!.,"):
            pieces.append(character)
        else:
            pieces[-1] += character
    return pieces


# --- fonts ----------------------------------------------------------------------------------------


def _font_of(character: str, language: str, text: str) -> Path:
    """The first font that has the character: the language's own, then the others."""
    paths = _font_files()
    order = [_FIRST_FONT.get(language, "latin"), *paths]
    for script in order:
        if ord(character) in _characters(paths[script]):
            return paths[script]
    raise DataError(
        f"no glyph for {character!r} "
        f"(U+{ord(character):04X} {character_name(character, 'unnamed')}) in "
        f"{', '.join(path.name for path in paths.values())}; it occurs in {text!r}: "
        "leave the character out or write it in another way"
    )


_FIRST_FONT = {"zh": "chinese", "ar": "arabic"}


@cache
def _font_files() -> dict[str, Path]:
    """Script -> font file. Noto Sans also covers Greek and Cyrillic."""
    found = {}
    for script, (package, *place) in {
        "latin": ("fontpkg_noto_sans", "files", "NotoSans[wdth,wght].ttf"),
        "arabic": ("fontpkg_noto_sans_arabic", "files", "NotoSansArabic[wdth,wght].ttf"),
        "chinese": ("pylopdf_fonts_zh_cn", "NotoSansSC-Regular.otf"),
    }.items():
        try:
            found[script] = Path(str(files(package).joinpath(*place)))
        except ImportError as error:
            raise _missing(error) from error
        if not found[script].is_file():
            raise ConfigError(
                f"package {package!r} has no '{'/'.join(place)}': another version than expected; "
                'install the one listed: pip install -e ".[starter]"'
            )
    return found


@cache
def _characters(path: Path) -> frozenset[int]:
    """Code points that a font has a glyph for."""
    try:
        from fontTools.ttLib import TTFont
    except ImportError as error:
        raise _missing(error) from error
    with TTFont(path, lazy=True) as font:
        return frozenset(font.getBestCmap())


@cache
def _sized(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _arabic() -> tuple[Callable[[str], str], Callable[..., str]]:
    """(join letters, put into visual order)."""
    try:
        from arabic_reshaper import ArabicReshaper

        # Not the package's top-level function: it reorders but does not mirror brackets.
        from bidi.algorithm import get_display
    except ImportError as error:
        raise _missing(error) from error
    return ArabicReshaper().reshape, get_display


def _missing(error: ImportError) -> ConfigError:
    return ConfigError(
        f"package {error.name!r} is missing: fonts and Arabic shaping come from the starter extra. "
        'Install it with: pip install -e ".[starter]"'
    )
