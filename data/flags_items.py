"""Splits, pictures and training items: which country is held out, what is asked in training.

In training, too, no colour is on the flag more often than not, and no direction of stripes or main
colour leads by far: an answer that needs no picture is no use.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

if __package__:
    from data import flags_catalogue as catalogue
    from data import flags_maps as maps
    from data import flags_questions as ask
    from data import flags_scenes as scenes
    from data.common import even, evenly, llava_item, round_robin
    from data.flags_drawing import COLOURS, Facts
else:
    import flags_catalogue as catalogue
    import flags_maps as maps
    import flags_questions as ask
    import flags_scenes as scenes
    from common import even, evenly, llava_item, round_robin
    from flags_drawing import COLOURS, Facts

from llava_mole.languages import LANGUAGES

SPLITS = ("train", "dev", "test")
HELD_OUT_SHARE = {"dev": 0.15, "test": 0.17}
"""Of the countries whose flag can be told from every other's."""
_NOT_REPAINTED = {"NP", "BN", "IQ", "IR", "SA"}
"""Nepal's is no oblong: what is around it would be painted too. The others bear sacred words."""

Drawing = tuple[str, str, int | None]
"""Artist, code of the country, and by which lot it is repainted (None: as it is)."""
FactsOf = Mapping[Drawing, Facts]


@dataclass(frozen=True)
class FlagPicture:
    """A flag in a scene."""

    key: str
    split: str
    country: catalogue.Country
    artist: str
    family: str
    lot: int | None
    """Of a repainted flag."""
    trained: bool
    """Whether the country is one of the trained ones."""

    @property
    def drawing(self) -> Drawing:
        return self.artist, self.country.code, self.lot

    @property
    def may_name(self) -> bool:
        """Whether a careful person can tell whose flag it is."""
        return self.lot is None and self.country.code not in catalogue.TWINS


@dataclass(frozen=True)
class MapPicture:
    """A map with a place marked."""

    key: str
    split: str
    family: str
    place: maps.Place


# --- splits and pictures --------------------------------------------------------------------------


def split(
    countries: Sequence[catalogue.Country], facts: FactsOf, seed: int
) -> dict[str, list[catalogue.Country]]:
    """Trained, dev and test countries, stratified by stripes and region.

    Twins are trained on (nobody is asked whose they are), and so is what has no facts to ask about.
    """
    rng = random.Random(f"{seed}:split")
    lots = {country: rng.random() for country in countries}
    able = [
        country
        for country in countries
        if country.code not in catalogue.TWINS
        and all(facts[artist, country.code, None].present for artist in country.artists)
    ]
    able.sort(key=lambda c: (str(stripes_of(c, facts)), c.region, lots[c]))
    sizes = {name: round(share * len(able)) for name, share in HELD_OUT_SHARE.items()}
    aside = evenly(range(len(able)), sum(sizes.values()), rng)
    tested = set(evenly(aside, sizes["test"], rng))
    place = {able[index]: "test" if index in tested else "dev" for index in aside}
    parts: dict[str, list[catalogue.Country]] = {name: [] for name in SPLITS}
    for country in countries:
        parts[place.get(country, "train")].append(country)
    return parts


def stripes_of(country: catalogue.Country, facts: FactsOf) -> str | None:
    """Which way its stripes run, if all its drawings say the same."""
    seen = {facts[artist, country.code, None].stripes for artist in country.artists}
    return seen.pop() if len(seen) == 1 else None


def flag_pictures(
    parts: Mapping[str, Sequence[catalogue.Country]], renderings: int, repaints: int, seed: int
) -> list[FlagPicture]:
    """All pictures of flags: families of scenes and artists in turn.

    Args:
        renderings: pictures of each trained flag as it is.
        repaints: pictures of each trained flag's pattern in other colours. Dev and test show each
            trained flag once, and each unseen one half as often as ``renderings`` (twice at
            least) as it is, and as often repainted.
    """
    unseen = max(2, renderings // 2)
    pictures = []
    for place, country in enumerate(parts["train"]):
        pictures += _in_scenes(country, "train", range(renderings), None)
        if country.code not in _NOT_REPAINTED:
            lots = seed * 10_000 + place
            pictures += _in_scenes(country, "train", range(repaints), lots)
    for name, offset in (("dev", 5_000), ("test", 7_000)):
        for number, country in enumerate(parts["train"]):
            if country.code not in catalogue.TWINS:
                pictures += _in_scenes(country, name, [number], None)
        for place, country in enumerate(parts[name]):
            pictures += _in_scenes(country, name, range(unseen), None, trained=False)
            if country.code not in _NOT_REPAINTED:
                lots = seed * 10_000 + offset + place
                pictures += _in_scenes(country, name, range(unseen), lots, trained=False)
    return pictures


def _in_scenes(
    country: catalogue.Country,
    name: str,
    numbers: Iterable[int],
    lots: int | None,
    *,
    trained: bool = True,
) -> Iterator[FlagPicture]:
    families = scenes.FAMILIES[name]
    for number in numbers:
        # Families fastest, then artists: 5 families and 2 artists pair up within 10 renderings.
        artist = country.artists[number // len(families) % len(country.artists)]
        yield FlagPicture(
            key=f"{country.code}-{name}-{'' if lots is None else 'p'}{number:02d}",
            split=name,
            country=country,
            artist=artist,
            family=families[number % len(families)],
            lot=None if lots is None else lots + 100 * number + number,
            trained=trained,
        )


def map_pictures(counts: Mapping[str, int], seed: int) -> list[MapPicture]:
    """Places spread evenly over the parts of the world."""
    pictures = []
    for name, count in counts.items():
        rng = random.Random(f"{seed}:maps:{name}")
        parts = even(catalogue.PARTS, count, rng)
        families = even(maps.FAMILIES[name], count, rng)
        for number, (part, family) in enumerate(zip(parts, families, strict=True)):
            place = maps.draw_place(part, name, rng)
            pictures.append(MapPicture(f"map-{name}-{number:04d}", name, family, place))
    return pictures


# --- training -------------------------------------------------------------------------------------


def training_items(
    flags: Sequence[FlagPicture], plans: Sequence[MapPicture], facts: FactsOf, seed: int
) -> list[dict]:
    """LLaVA items, those of a picture one after the other.

    Whose flag and which part of the world: every picture, in all languages. Stripes: in all
    languages, as many horizontal as vertical ones. The main colour: in all languages, none more
    often than the second most frequent. Whether a colour is there: in one, yes as often as no for
    each colour and language.
    """
    rng = random.Random(f"{seed}:train")
    items: dict[str, list[dict]] = {picture.key: [] for picture in (*flags, *plans)}
    forms = {
        (kind, language): round_robin(range(len(ask.TRAINED[kind][language])), rng)
        for kind in ask.KINDS
        for language in LANGUAGES
    }

    def add(
        key: str, kind: str, language: str, answer: str, suffix: str = "", **slots: str
    ) -> None:
        form = next(forms[kind, language])
        items[key].append(
            llava_item(
                image=f"images/{key}.png",
                question=ask.TRAINED[kind][language][form].format(**slots),
                answer=answer,
                domain="flags",
                language=language,
                kind=kind,
                template=f"{kind}.{form}",
                suffix=suffix,
            )
        )

    for picture in flags:
        if picture.may_name:
            for language in LANGUAGES:
                add(picture.key, "country", language, picture.country.names[language])
    mains = [(p, main) for p in flags if (main := facts[p.drawing].main)]
    for picture, main in _balanced(mains, rng):
        for language in LANGUAGES:
            answer = ask.label(ask.COLOURS, main, language)
            add(picture.key, "main_colour", language, answer)
    turns: Counter = Counter()
    for picture, colour, there in _colour_questions(flags, facts, rng):
        language = LANGUAGES[turns[colour, there] % len(LANGUAGES)]
        turns[colour, there] += 1
        slot = ask.colour_in_question(colour, language)
        answer = ask.YES_NO[language][0 if there else 1]
        add(picture.key, "has_colour", language, answer, f".{colour}", colour=slot)
    striped = [(p, answer) for p in flags if (answer := stripes_of(p.country, facts))]
    for picture, answer in _balanced(striped, rng):
        for language in LANGUAGES:
            add(picture.key, "stripes", language, ask.label(ask.STRIPES, answer, language))
    for plan in plans:
        for language in LANGUAGES:
            add(plan.key, "world_part", language, ask.label(ask.PARTS, plan.place.part, language))
    return [item for members in items.values() for item in members]


def _balanced(
    members: Sequence[tuple[FlagPicture, str]], rng: random.Random
) -> list[tuple[FlagPicture, str]]:
    """(picture, answer) pairs, without those that make the leading answer lead the second one."""
    counts = Counter(answer for _, answer in members)
    if len(counts) < 2:
        return list(members)
    most = sorted(counts.values())[-2]
    taken: Counter = Counter()
    kept = set()
    for place in rng.sample(range(len(members)), len(members)):
        answer = members[place][1]
        if taken[answer] < most:
            taken[answer] += 1
            kept.add(place)
    return [member for place, member in enumerate(members) if place in kept]


def _colour_questions(
    flags: Sequence[FlagPicture], facts: FactsOf, rng: random.Random
) -> list[tuple[FlagPicture, str, bool]]:
    """(picture, colour, whether it is there): for each colour as many yes as no."""
    questions = []
    for colour in COLOURS:
        there = [picture for picture in flags if colour in facts[picture.drawing].present]
        gone = [picture for picture in flags if colour in facts[picture.drawing].absent]
        count = min(len(there), len(gone))
        for members, truth in ((there, True), (gone, False)):
            questions += [(picture, colour, truth) for picture in rng.sample(members, count)]
    rng.shuffle(questions)
    return questions
