"""Typefaces of the documents: which split may use which, and how a line is set in one.

No typeface of one split is used in another: training, dev and test documents look different in
every script. Files come from packages, so a picture is the same on every machine; all are under the
SIL Open Font License except WenQuanYi Micro Hei (Apache-2.0).
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from unicodedata import name as character_name
from unicodedata import normalize

from fontTools.ttLib import TTFont
from PIL import ImageDraw, ImageFont

from llava_mole.errors import ConfigError, DataError
from llava_mole.typesetting import visual_order

SCRIPTS = ("latin", "chinese", "arabic", "cyrillic")
SCRIPT_OF = {
    "en": "latin",
    "zh": "chinese",
    "pt": "latin",
    "ar": "arabic",
    "tr": "latin",
    "ru": "cyrillic",
}

WEIGHTS = {False: 400, True: 700}
"""Of a variable font, plain and bold."""

_FILES: dict[str, tuple[str, str, str | None]] = {
    "Noto Sans": ("fontpkg_noto_sans", "files/NotoSans[wdth,wght].ttf", None),
    "Noto Serif": ("fontpkg_noto_serif", "files/NotoSerif[wdth,wght].ttf", None),
    "Rubik": ("fontpkg_rubik", "files/Rubik[wght].ttf", None),
    "JetBrains Mono": ("fontpkg_jetbrains_mono", "files/JetBrainsMono[wght].ttf", None),
    "Play": ("fontpkg_play", "files/Play-Regular.ttf", "files/Play-Bold.ttf"),
    "Montserrat": ("fontpkg_montserrat", "files/Montserrat[wght].ttf", None),
    "Lora": ("fontpkg_lora", "files/Lora[wght].ttf", None),
    "PT Sans": (
        "fontpkg_pt_sans", "files/PT_Sans-Web-Regular.ttf", "files/PT_Sans-Web-Bold.ttf",
    ),
    "IBM Plex Serif": (
        "fontpkg_ibm_plex_serif", "files/IBMPlexSerif-Regular.ttf", "files/IBMPlexSerif-Bold.ttf",
    ),
    "Noto Sans Arabic": ("fontpkg_noto_sans_arabic", "files/NotoSansArabic[wdth,wght].ttf", None),
    "Amiri": ("fontpkg_amiri", "files/Amiri-Regular.ttf", "files/Amiri-Bold.ttf"),
    "IBM Plex Sans Arabic": (
        "fontpkg_ibm_plex_sans_arabic",
        "files/IBMPlexSansArabic-Regular.ttf",
        "files/IBMPlexSansArabic-Bold.ttf",
    ),
    "Noto Kufi Arabic": ("fontpkg_noto_kufi_arabic", "files/NotoKufiArabic[wght].ttf", None),
    "Noto Sans SC": ("pylopdf_fonts_zh_cn", "NotoSansSC-Regular.otf", None),
    "WenQuanYi Micro Hei": ("paperang_p2_fonts_cjk", "fonts/wqy-microhei.ttc", None),
    "Noto Serif SC": ("pylopdf_fonts_zh_cn", "NotoSerifSC-Regular.otf", None),
}  # fmt: skip
"""Typeface -> package, file, file of its bold (None: a variable font, or strokes made thicker)."""

_WESTERN = {
    "train": ("Noto Sans", "Noto Serif", "Rubik", "JetBrains Mono", "Play"),
    "dev": ("Montserrat", "Lora"),
    "test": ("PT Sans", "IBM Plex Serif"),
}
TYPEFACES: dict[str, dict[str, tuple[str, ...]]] = {
    "latin": _WESTERN,
    "cyrillic": _WESTERN,
    "arabic": {
        "train": ("Noto Sans Arabic", "Amiri"),
        "dev": ("IBM Plex Sans Arabic",),
        "test": ("Noto Kufi Arabic",),
    },
    "chinese": {
        "train": ("Noto Sans SC",),
        "dev": ("WenQuanYi Micro Hei",),
        "test": ("Noto Serif SC",),
    },
}
"""Script -> split -> its typefaces."""


def typefaces(language: str, split: str) -> tuple[str, ...]:
    """Those in which a document of this language and split may be set."""
    return TYPEFACES[SCRIPT_OF[language]][split]


@dataclass(frozen=True)
class Setter:
    """Sets lines of one language in one typeface; missing signs come from others of the split.

    Raises:
        DataError: no typeface of the split has a character (on measuring or drawing it).
        ConfigError: a font package is missing.
    """

    language: str
    split: str
    typeface: str

    def width(self, text: str, size: int, bold: bool = False) -> float:
        """Pixels that the line takes."""
        return sum(font.getlength(part) for part, font, _ in self._runs(text, size, bold))

    def draw(
        self,
        pen: ImageDraw.ImageDraw,
        xy: tuple[float, float],
        text: str,
        size: int,
        fill: object,
        bold: bool = False,
    ) -> None:
        """Draw one line from its left end ``x`` on its baseline ``y``."""
        x, y = xy
        runs = self._runs(text, size, bold)
        for part, font, stroke in runs:
            pen.text((x, y), part, fill=fill, font=font, anchor="ls", stroke_width=stroke)
            if len(runs) > 1:
                x += font.getlength(part)

    def _runs(
        self, text: str, size: int, bold: bool
    ) -> list[tuple[str, ImageFont.FreeTypeFont, float]]:
        """(characters, font, thickness to add), from left to right."""
        visual = visual_order(normalize("NFC", text), self.language)
        names = [self._typeface_of(character, text) for character in visual]
        runs = []
        for name, run in groupby(zip(visual, names, strict=True), key=lambda pair: pair[1]):
            font, is_bold = _font(name, size, bold)
            stroke = size / 28 if bold and not is_bold else 0
            runs.append(("".join(character for character, _ in run), font, stroke))
        return runs

    def _typeface_of(self, character: str, text: str) -> str:
        own = typefaces(self.language, self.split)
        candidates = dict.fromkeys([self.typeface, *own, *_WESTERN[self.split]])
        for name in candidates:
            if ord(character) in _characters(name):
                return name
        raise DataError(
            f"no glyph for {character!r} (U+{ord(character):04X} "
            f"{character_name(character, 'unnamed')}) in {', '.join(candidates)}; it occurs in "
            f"{text!r}: write it in another way or give the split another typeface"
        )


@cache
def _font(name: str, size: int, bold: bool) -> tuple[ImageFont.FreeTypeFont, bool]:
    """The font, and whether it is as bold as asked."""
    _, _, bold_file = _FILES[name]
    has_file = bold and bold_file is not None
    path = _path(name, bold_file if has_file else _FILES[name][1])
    font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    if not path.name.endswith("].ttf"):
        return font, has_file
    font.set_variation_by_axes(
        [
            WEIGHTS[bold] if axis["name"] in (b"Weight", "Weight") else axis["default"]
            for axis in font.get_variation_axes()
        ]
    )
    return font, True


@cache
def _characters(name: str) -> frozenset[int]:
    """Code points that the typeface has a glyph for."""
    with TTFont(_path(name, _FILES[name][1]), lazy=True, fontNumber=0) as font:
        return frozenset(font.getBestCmap())


def _path(name: str, file: str) -> Path:
    package = _FILES[name][0]
    try:
        path = Path(str(files(package).joinpath(file)))
    except ImportError as error:
        raise ConfigError(
            f"package {package!r} is missing: the typeface {name} comes from it. "
            'Install it with: pip install -e ".[starter]"'
        ) from error
    if not path.is_file():
        raise ConfigError(
            f"package {package!r} has no '{file}': another version than expected; "
            'install the one listed: pip install -e ".[starter]"'
        )
    return path


def versions() -> dict[str, str]:
    """Versions of the font packages."""
    packages = sorted({package.replace("_", "-") for package, *_ in _FILES.values()})
    return {package: version(package) for package in packages}
