"""Splits, pools and items: who is asked what, and among which options.

A guess without the picture must be at chance. Two devices see to it:

* names: a *pool* is a part of a partition of the split. Four options are the right picture and
  three others of its pool, all drawn evenly, so each of the four is the right one equally often. In
  evaluation files that is exact: four pictures of a pool are asked about one after the other, in
  the same words and with the same four options;
* kinds and colours: four pictures with four different answers are drawn first, then that one of the
  answers is made the right one which was right least often for how often it was offered, then a
  picture that has this answer is taken.

In evaluation files the letters of the right options are exactly even, too.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, islice

if __package__:
    from data import openmoji_questions as ask
    from data.common import even, llava_item, round_robin, tsv_row, with_right_at
    from data.openmoji_catalogue import Picture
else:
    import openmoji_questions as ask
    from common import even, llava_item, round_robin, tsv_row, with_right_at
    from openmoji_catalogue import Picture

TRAIN, DEV, MOST_TEST = 1320, 110, 150

Key = Callable[[Picture], str | None]

NEVER_TOGETHER = (
    {"food", "plant"}, {"place", "weather"}, {"object", "clothing"}, {"object", "activity"},
    {"symbol", "object"}, {"symbol", "activity"}, {"symbol", "face"}, {"clothing", "activity"},
)  # fmt: skip
"""Kinds a careful reader could both defend for one picture: never offered side by side."""


# --- which picture goes where ---------------------------------------------------------------------


def spread(pictures: Sequence[Picture], count: int, rng: random.Random) -> list[Picture]:
    """``count`` pictures evenly spaced over the categories, in the given order."""
    chosen = set(_evenly(_by_category(pictures, rng), count, rng))
    return [picture for index, picture in enumerate(pictures) if index in chosen]


def split(pictures: Sequence[Picture], seed: int) -> dict[str, list[Picture]]:
    """train, dev and test, stratified by subcategory.

    Of the full catalogue 1,320 pictures are trained, 110 are dev and the rest, at most 150, test; a
    smaller set is divided in the same proportions.
    """
    dev, test = DEV, min(MOST_TEST, len(pictures) - TRAIN - DEV)
    if test < DEV:
        dev = test = max(8, len(pictures) * DEV // (TRAIN + 2 * DEV))
    rng = random.Random(f"{seed}:split")
    aside = _evenly(_by_category(pictures, rng), dev + test, rng)
    # Among those set aside (still in category order) test pictures are evenly spaced too.
    tested = {aside[place] for place in _evenly(range(len(aside)), test, rng)}
    place = {index: "test" if index in tested else "dev" for index in aside}
    parts: dict[str, list[Picture]] = {"train": [], "dev": [], "test": []}
    for index, picture in enumerate(pictures):
        parts[place.get(index, "train")].append(picture)
    return parts


def _by_category(pictures: Sequence[Picture], rng: random.Random) -> list[int]:
    """Indices ordered by group and subcategory, shuffled within a subcategory."""
    lots = [rng.random() for _ in pictures]
    return sorted(
        range(len(pictures)), key=lambda i: (pictures[i].group, pictures[i].category, lots[i])
    )


def _evenly(order: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """``count`` evenly spaced elements of ``order``, from a random start."""
    start = rng.random()
    return [order[int((position + start) * len(order) / count)] for position in range(count)]


def pools(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Picture key -> its pool: its subcategory if that has four members, else its group's rest."""
    parts: list[list[Picture]] = []
    rest = list(pictures)
    for level in (lambda p: (p.group, p.category), lambda p: p.group, lambda p: ""):
        cells: dict[object, list[Picture]] = defaultdict(list)
        for picture in rest:
            cells[level(picture)].append(picture)
        parts += [cell for cell in cells.values() if len(cell) >= 4]
        rest = [picture for cell in cells.values() if len(cell) < 4 for picture in cell]
    if rest:
        smallest = min(parts, key=len)
        smallest += rest
    return {picture.key: part for part in parts for picture in part}


# --- options --------------------------------------------------------------------------------------


def name_options(picture: Picture, pool: Sequence[Picture], rng: random.Random) -> list[Picture]:
    """The picture and three others of its pool, in random order."""
    others = rng.sample([other for other in pool if other.key != picture.key], 3)
    options = [picture, *others]
    rng.shuffle(options)
    return options


def answer_draws(
    pictures: Sequence[Picture], key: Key, count: int, rng: random.Random
) -> Iterator[tuple[Picture, list[str]]]:
    """``count`` pairs: a picture, and four different answers in random order, one its own."""
    holders: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        answer = key(picture)
        if answer is not None:
            holders[answer].append(picture)
    answers = [answer for answer, members in holders.items() for _ in members]
    if not any(_compatible(four) for four in _fours(sorted(holders))):
        return
    turns = {answer: round_robin(members, rng) for answer, members in holders.items()}
    owed = dict.fromkeys(holders, 0.0)  # times offered / 4 - times right
    for _ in range(count):
        options = rng.sample(answers, 4)
        while not _compatible(options):
            options = rng.sample(answers, 4)
        for option in options:
            owed[option] += 0.25
        right = max(options, key=owed.__getitem__)  # the first of equals; their order is random
        owed[right] -= 1.0
        yield next(turns[right]), options


def _fours(answers: list[str]) -> Iterator[list[str]]:
    return (list(four) for four in combinations(answers, 4))


def _compatible(options: list[str]) -> bool:
    chosen = set(options)
    return len(chosen) == 4 and not any(pair <= chosen for pair in NEVER_TOGETHER)


# --- training -------------------------------------------------------------------------------------


def training_items(pictures: Sequence[Picture], seed: int) -> list[dict]:
    """LLaVA items of the trained pictures.

    Per picture and language: two naming questions in different forms, one yes and one no, one
    choice of four, and its kind and its colour where they are beyond dispute.
    """
    pool_of = pools(pictures)
    items: list[dict] = []
    for picture in pictures:
        for language in ask.LANGUAGES:
            rng = random.Random(f"{seed}:train:{picture.key}:{language}")
            items += _picture_items(picture, language, pool_of[picture.key], rng)
    return items


def _picture_items(
    picture: Picture, language: str, pool: list[Picture], rng: random.Random
) -> Iterator[dict]:
    name = picture.names[language]
    yes, no = ask.YES_NO[language]
    forms = {kind: ask.TRAINED[kind][language] for kind in ask.KINDS}
    for form in rng.sample(range(len(forms["naming"])), 2):
        yield _item(picture, language, "naming", form, forms["naming"][form], name)
    other = rng.choice([other for other in pool if other.key != picture.key])
    for asked, answer in ((picture, yes), (other, no)):
        form = rng.randrange(len(forms["yes_no"]))
        question = forms["yes_no"][form].format(name=ask.quote(asked.names[language], language))
        yield _item(
            picture,
            language,
            "yes_no",
            form,
            question,
            answer,
            suffix="" if asked is picture else ".no",
        )
    options = name_options(picture, pool, rng)
    form = rng.randrange(len(forms["choice"]))
    question = ask.choice_question(
        forms["choice"][form],
        [option.names[language] for option in options],
        rng.choice(ask.ANSWER_WITH_LETTER[language]),
    )
    yield _item(picture, language, "choice", form, question, ask.LETTERS[options.index(picture)])
    for kind, labels, answer in (
        ("kind", ask.KIND_LABELS, picture.kind),
        ("attribute", ask.COLOUR_LABELS, picture.colour),
    ):
        if answer is not None:
            form = rng.randrange(len(forms[kind]))
            yield _item(
                picture,
                language,
                kind,
                form,
                forms[kind][form],
                ask.label(labels, answer, language),
            )


def _item(
    picture: Picture,
    language: str,
    kind: str,
    form: int,
    question: str,
    answer: str,
    suffix: str = "",
) -> dict:
    return llava_item(
        image=f"images/{picture.key}.png",
        question=question,
        answer=answer,
        domain="openmoji",
        language=language,
        kind=kind,
        template=f"{kind}.{form}",
        suffix=suffix,
    )


# --- evaluation -----------------------------------------------------------------------------------


def evaluation_rows(
    split_name: str, pictures: Sequence[Picture], count: int, seed: int
) -> list[dict]:
    """Rows of one TSV, without index and image: ``count`` per language and kind, in held-out forms.

    The same pictures, options and letters are asked in all six languages, row for row. Naming and
    choice come in blocks of four items that differ in the picture and the options' order alone.
    A kind with too few different answers in this split (a tiny set) has no rows.
    """
    rows = []
    for kind in ask.KINDS:
        rng = random.Random(f"{seed}:eval:{split_name}:{kind}")
        draws = list(_draws(kind, pictures, count, rng))
        for language in ask.LANGUAGES:
            for number, (picture, asked, options, right) in enumerate(draws):
                turn = number // 4 if kind in ("naming", "choice") else number
                form = turn % len(ask.HELD_OUT[kind][language])
                template = f"{kind}.held_out.{form}"
                question = ask.HELD_OUT[kind][language][form]
                if kind == "yes_no":
                    question = question.format(name=ask.quote(asked.names[language], language))
                rows.append(
                    tsv_row(
                        question=question,
                        options=[_option_text(kind, option, language) for option in options],
                        right=right,
                        kind=kind,
                        picture=picture.key,
                        source="openmoji",
                        group=picture.group,
                        item=number,
                        template=template,
                        split=split_name,
                        language=language,
                    )
                )
    return rows


def _draws(
    kind: str, pictures: Sequence[Picture], count: int, rng: random.Random
) -> Iterator[tuple[Picture, Picture, list, int]]:
    """(picture shown, picture whose name is asked about, options, place of the right option)."""
    if kind in ("kind", "attribute"):
        key: Key = (lambda p: p.kind) if kind == "kind" else (lambda p: p.colour)
        places = even(range(4), count, rng)
        for picture, options in answer_draws(pictures, key, count, rng):
            place = next(places)
            yield picture, picture, with_right_at(place, options, key(picture)), place
        return
    pool_of = pools(pictures)
    turns = round_robin(pictures, rng)
    if kind == "yes_no":
        for truth, place in even([(t, p) for t in (True, False) for p in (0, 1)], count, rng):
            picture = next(turns)
            others = [other for other in pool_of[picture.key] if other.key != picture.key]
            asked = picture if truth else rng.choice(others)
            yield picture, asked, [truth, not truth] if place == 0 else [not truth, truth], place
        return
    for picture, options, place in islice(_blocks(pool_of, turns, rng), count):
        yield picture, picture, with_right_at(place, options, picture), place


def _blocks(
    pool_of: dict[str, list[Picture]], turns: Iterator[Picture], rng: random.Random
) -> Iterator[tuple[Picture, list[Picture], int]]:
    """(right picture, four options, place of the right one), four of a pool in turn, without end.

    Pictures that were not asked about yet come first.
    """
    asked: dict[str, int] = defaultdict(int)
    while True:
        first = next(turns)
        for _ in range(len(pool_of)):
            if not asked[first.key]:
                break
            first = next(turns)
        others = [other for other in pool_of[first.key] if other.key != first.key]
        rng.shuffle(others)
        block = [first, *sorted(others, key=lambda other: asked[other.key])[:3]]
        for picture, place in zip(block, rng.sample(range(4), 4), strict=True):
            asked[picture.key] += 1
            yield picture, block, place


def _option_text(kind: str, option: object, language: str) -> str:
    if isinstance(option, Picture):
        return option.names[language]
    if kind == "yes_no":
        return ask.YES_NO[language][0 if option else 1]
    return ask.label(
        ask.KIND_LABELS if kind == "kind" else ask.COLOUR_LABELS, str(option), language
    )
