"""How charts look: layouts, colours and fonts, each owned by one split.

A layout says what is drawn around and inside the marks; sizes, margins and shades are drawn by lot
within it. Dev and test layouts and fonts appear on no trained chart.
"""

import colorsys
import random
from dataclasses import dataclass

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    name: str
    split: str
    ground: RGB = (255, 255, 255)
    panel: RGB | None = None
    """Colour of the plot's own field, where it differs from the ground."""
    ink: RGB = (40, 40, 40)
    """Text and axes."""
    grid: str = "none"
    """'none', 'lines', 'dashes', 'dots', 'bands'."""
    frame: str = "axes"
    """'none', 'base', 'axes', 'box'."""
    axis: str = "left"
    """Side of the value axis."""
    title: str = "top"
    """'top', 'left' (top, from the left edge), 'bottom'."""
    legend: str = "none"
    """'none', 'right', 'bottom', 'top': of charts whose marks have their own colours."""
    fill: str = "flat"
    """Of bars and areas: 'flat', 'rounded', 'outlined', 'shadow', 'gradient', 'striped'."""
    slices: str = "flat"
    """Of a pie: 'flat', 'gaps', 'outlined', 'apart' (one slice pulled out)."""
    point: str = "dot"
    """'dot', 'ring', 'square', 'diamond', 'cross'; lines carry them where ``marked``."""
    marked: bool = False
    bar: tuple[float, float] = (0.5, 0.85)
    """Width of a bar as a share of its place, least and most."""
    stroke: tuple[float, float] = (2.0, 4.0)
    """Width of lines in pixels of the finished picture."""


LAYOUTS = (
    Layout("paper", "train"),
    Layout(
        "grey", "train", panel=(229, 229, 229), grid="lines", frame="none", point="dot",
        legend="right", bar=(0.7, 0.95), slices="gaps",
    ),
    Layout(
        "newspaper", "train", ground=(250, 243, 228), grid="lines", frame="base", axis="right",
        title="left", bar=(0.45, 0.7), stroke=(1.5, 3.0), slices="outlined",
    ),
    Layout(
        "report", "train", grid="dashes", frame="box", fill="outlined", legend="bottom",
        slices="outlined", point="ring", marked=True,
    ),
    Layout(
        "slate", "train", ground=(38, 42, 48), ink=(225, 225, 225), grid="lines", frame="none",
        legend="top", slices="apart", point="square", stroke=(2.5, 4.5),
    ),
    Layout(
        "card", "train", ground=(222, 230, 240), panel=(255, 255, 255), frame="base",
        title="bottom", fill="rounded", slices="gaps", marked=True, bar=(0.4, 0.65),
    ),
    Layout(
        "bare", "train", frame="base", title="bottom", bar=(0.8, 0.95), stroke=(3.0, 5.0),
        point="cross", slices="apart",
    ),
    Layout(
        "journal", "train", ground=(245, 245, 245), grid="dots", frame="axes", axis="right",
        title="left", fill="gradient", legend="right", point="diamond", stroke=(1.8, 3.0),
    ),
    Layout(
        "ledger", "dev", ground=(238, 244, 236), grid="bands", frame="box", axis="right",
        title="bottom", legend="top", fill="shadow", slices="gaps", point="diamond", marked=True,
        bar=(0.55, 0.75),
    ),
    Layout(
        "night", "dev", ground=(28, 24, 34), panel=(46, 42, 54), ink=(235, 230, 215), grid="dots",
        frame="none", title="left", legend="bottom", fill="rounded", slices="flat", point="ring",
        bar=(0.6, 0.9), stroke=(2.0, 3.5),
    ),
    Layout(
        "leaflet", "dev", ground=(255, 250, 250), grid="dashes", frame="axes", legend="right",
        fill="gradient", slices="apart", point="square", bar=(0.45, 0.6), stroke=(3.0, 4.5),
    ),
    Layout(
        "poster", "test", ground=(236, 229, 243), frame="box", title="bottom", legend="right",
        fill="striped", slices="apart", point="square", marked=True, bar=(0.5, 0.8),
        stroke=(2.5, 4.0),
    ),
    Layout(
        "board", "test", ground=(24, 32, 32), ink=(240, 240, 235), grid="bands", frame="base",
        axis="right", legend="bottom", fill="outlined", slices="gaps", point="cross",
        bar=(0.6, 0.8), stroke=(2.0, 3.5),
    ),
    Layout(
        "booklet", "test", ground=(247, 238, 224), panel=(255, 252, 246), grid="dots",
        frame="axes", title="left", legend="top", fill="shadow", slices="outlined",
        point="diamond", bar=(0.7, 0.9), stroke=(1.8, 3.2),
    ),
)  # fmt: skip

BY_NAME = {layout.name: layout for layout in LAYOUTS}


@dataclass(frozen=True)
class Fonts:
    """One face per script. Each file as (package, place inside it)."""

    name: str
    split: str
    latin: tuple[str, ...]
    """Has Turkish, Portuguese and Russian letters."""
    arabic: tuple[str, ...]
    chinese: tuple[str, ...] | None

    @property
    def languages(self) -> tuple[str, ...]:
        """What a chart in these fonts may be written in."""
        return ("en", "pt", "ar", "tr", "ru") + (("zh",) if self.chinese else ())


def _package(name: str, file: str) -> tuple[str, ...]:
    return (f"fontpkg_{name}", "files", file)


_TRAIN_ARABIC = _package("noto_sans_arabic", "NotoSansArabic[wdth,wght].ttf")
_TRAIN_CHINESE = ("pylopdf_fonts_zh_cn", "NotoSansSC-Regular.otf")
FONTS = (
    Fonts(
        "Noto Sans", "train", _package("noto_sans", "NotoSans[wdth,wght].ttf"), _TRAIN_ARABIC,
        _TRAIN_CHINESE,
    ),
    Fonts(
        "Roboto", "train", _package("roboto", "Roboto[wdth,wght].ttf"), _TRAIN_ARABIC,
        _TRAIN_CHINESE,
    ),
    Fonts(
        "Noto Serif", "train", _package("noto_serif", "NotoSerif[wdth,wght].ttf"), _TRAIN_ARABIC,
        _TRAIN_CHINESE,
    ),
    Fonts(
        "Lora", "dev", _package("lora", "Lora[wght].ttf"),
        _package("noto_kufi_arabic", "NotoKufiArabic[wght].ttf"),
        ("pylopdf_fonts_zh_cn", "NotoSerifSC-Regular.otf"),
    ),
    Fonts(
        "Rubik", "test", _package("rubik", "Rubik[wght].ttf"),
        _package("amiri", "Amiri-Regular.ttf"), None,
    ),
)  # fmt: skip
"""The index has two families of simplified Chinese: test charts carry none."""

FONTS_BY_NAME = {fonts.name: fonts for fonts in FONTS}

COLOURS: dict[str, RGB] = {
    "red": (214, 30, 36),
    "orange": (242, 112, 12),
    "yellow": (255, 224, 48),
    "green": (74, 188, 70),
    "blue": (24, 72, 204),
    "purple": (100, 24, 146),
    "brown": (124, 72, 38),
}
"""Apart in lightness as well as in hue."""


def shade(name: str, rng: random.Random) -> RGB:
    """A colour near the named one: hue within 5 degrees, a little brighter or paler."""
    red, green, blue = COLOURS[name]
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    hue = (hue + rng.uniform(-5, 5) / 360) % 1
    saturation = min(1.0, saturation * rng.uniform(0.88, 1.08))
    value = min(1.0, value * rng.uniform(0.9, 1.1))
    first, second, third = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * first), round(255 * second), round(255 * third)


def mixed(first: RGB, second: RGB, share: float) -> RGB:
    """``share`` of the second colour in the first."""
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(first, second, strict=True))
    return red, green, blue
