"""Evaluation items of the flags data: who is asked what, among which options.

A guess without the picture must be at chance:

* countries are asked about four at a time: four of one region, each shown once, in the same words
  and with the same options;
* main colours and parts of the world: options are drawn first, then that one becomes the right
  one which was right least often for how often it was offered;
* yes and no, horizontal and vertical are equally often right; yes and no for each colour.

Letters of right options are even.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

if __package__:
    from data import flags_questions as ask
    from data.common import blocks, even, owed_draws, round_robin, tsv_row, with_right_at
    from data.flags_drawing import COLOURS
    from data.flags_items import FactsOf, FlagPicture, MapPicture, stripes_of
else:
    import flags_questions as ask
    from common import blocks, even, owed_draws, round_robin, tsv_row, with_right_at
    from flags_drawing import COLOURS
    from flags_items import FactsOf, FlagPicture, MapPicture, stripes_of

from llava_mole.languages import LANGUAGES


@dataclass(frozen=True)
class Draw:
    """An evaluation item, in no language yet."""

    picture: str
    options: tuple[str, ...]
    """Keys of the answers offered: codes, colours, parts, 'yes'."""
    right: int
    group: str
    asked: tuple[tuple[str, str], ...] = ()
    """Slots of the form: ('colour', 'red')."""


def evaluation_rows(
    name: str,
    flags: Sequence[FlagPicture],
    plans: Sequence[MapPicture],
    facts: FactsOf,
    count: int,
    seed: int,
) -> list[dict]:
    """Rows of eval_NAME.tsv without index and image: ``count`` a kind and language.

    Args:
        flags: the pictures of that split; countries are asked about on trained flags, all else on
            unseen ones, as they are or repainted (in ``eval_train`` all flags are trained).
    """
    seen = [picture for picture in flags if picture.trained]
    unseen = [picture for picture in flags if not picture.trained] or seen
    names = {picture.country.code: picture.country.names for picture in flags}
    rows = []
    for kind in ask.KINDS:
        rng = random.Random(f"{seed}:eval:{name}:{kind}")
        if kind == "country":
            draws = list(_country_draws(seen, count, rng))
        elif kind == "main_colour":
            draws = list(_main_draws(unseen, facts, count, rng))
        elif kind == "has_colour":
            draws = list(_colour_draws(unseen, facts, count, rng))
        elif kind == "stripes":
            draws = list(_stripe_draws(unseen, facts, count, rng))
        else:
            draws = list(_part_draws(plans, count, rng))
        for language in LANGUAGES:
            forms = ask.HELD_OUT[kind][language]
            for number, draw in enumerate(draws):
                form = (number // 4 if kind == "country" else number) % len(forms)
                slots = {slot: ask.colour_in_question(key, language) for slot, key in draw.asked}
                rows.append(
                    tsv_row(
                        question=forms[form].format(**slots),
                        options=[
                            names[option][language]
                            if kind == "country"
                            else _option_text(kind, option, language)
                            for option in draw.options
                        ],
                        right=draw.right,
                        kind=kind,
                        picture=draw.picture,
                        source="flags",
                        group=draw.group,
                        item=number,
                        template=f"{kind}.held_out.{form}",
                        split=name,
                        language=language,
                    )
                )
    return rows


def _option_text(kind: str, option: str, language: str) -> str:
    if kind == "has_colour":
        return ask.YES_NO[language][0 if option == "yes" else 1]
    labels = {
        "main_colour": ask.COLOURS,
        "stripes": ask.STRIPES,
        "world_part": ask.PARTS,
    }[kind]
    return ask.label(labels, option, language)


def _country_draws(flags: Sequence[FlagPicture], count: int, rng: random.Random) -> Iterator[Draw]:
    pictures: dict[str, list[str]] = defaultdict(list)
    regions: dict[str, list[str]] = defaultdict(list)
    region_of = {}
    for picture in flags:
        country = picture.country
        if not picture.may_name:
            continue
        if country.code not in pictures:
            regions[country.region].append(country.code)
        pictures[country.code].append(picture.key)
        region_of[country.code] = country.region
    pools = [members for members in regions.values() if len(members) >= 4]
    turns = {code: round_robin(keys, rng) for code, keys in pictures.items()}
    for right, options, place in blocks(pools, count, rng):
        offered = with_right_at(place, options, right)
        yield Draw(next(turns[right]), tuple(offered), place, region_of[right])


def _main_draws(
    flags: Sequence[FlagPicture], facts: FactsOf, count: int, rng: random.Random
) -> Iterator[Draw]:
    holders: dict[str, list[str]] = defaultdict(list)
    for picture in flags:
        main = facts[picture.drawing].main
        if main is not None:
            holders[main].append(picture.key)
    return _owed(holders, count, rng)


def _owed(holders: dict[str, list[str]], count: int, rng: random.Random) -> Iterator[Draw]:
    """Four of the answers, one that is owed its turn, and a picture that has it."""
    turns = {answer: round_robin(keys, rng) for answer, keys in holders.items()}
    places = even(range(4), count, rng)
    for right, options in owed_draws(sorted(holders), count, 4, rng):
        place = next(places)
        yield Draw(next(turns[right]), tuple(with_right_at(place, options, right)), place, right)


def _colour_draws(
    flags: Sequence[FlagPicture], facts: FactsOf, count: int, rng: random.Random
) -> Iterator[Draw]:
    turns = {}
    for colour in COLOURS:
        there = [picture.key for picture in flags if colour in facts[picture.drawing].present]
        gone = [picture.key for picture in flags if colour in facts[picture.drawing].absent]
        if there and gone:
            turns[colour] = {True: round_robin(there, rng), False: round_robin(gone, rng)}
    combinations = [(c, truth, place) for c in turns for truth in (True, False) for place in (0, 1)]
    for colour, truth, place in even(combinations, count if combinations else 0, rng):
        answer = "yes" if truth else "no"
        offered = with_right_at(place, ("yes", "no"), answer)
        key = next(turns[colour][truth])
        yield Draw(key, tuple(offered), place, colour, (("colour", colour),))


def _stripe_draws(
    flags: Sequence[FlagPicture], facts: FactsOf, count: int, rng: random.Random
) -> Iterator[Draw]:
    holders: dict[str, list[str]] = defaultdict(list)
    for picture in flags:
        answer = stripes_of(picture.country, facts)
        if answer is not None:
            holders[answer].append(picture.key)
    if len(holders) < 2:
        return
    turns = {answer: round_robin(keys, rng) for answer, keys in holders.items()}
    combinations = [(answer, place) for answer in sorted(holders) for place in (0, 1)]
    for answer, place in even(combinations, count, rng):
        offered = with_right_at(place, ("horizontal", "vertical"), answer)
        yield Draw(next(turns[answer]), tuple(offered), place, answer)


def _part_draws(plans: Sequence[MapPicture], count: int, rng: random.Random) -> Iterator[Draw]:
    holders: dict[str, list[str]] = defaultdict(list)
    for plan in plans:
        holders[plan.place.part].append(plan.key)
    return _owed(holders, count, rng)
