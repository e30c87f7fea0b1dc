"""Sheets of handwritten digits, and who is asked what about them.

Three sorts of sheets: a *single* big digit (which one, even or odd, more than five), a *pair* side
by side (which is greater), *several*, one to four of one size (how many). A guess without the
picture must be at chance: options for a digit are drawn first, then that one becomes the right one
which was right least often for how often it was offered; all other answers are even, and so are
letters.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

if __package__:
    from data import digits_drawing as drawing
    from data import digits_questions as ask
    from data.common import even, llava_item, owed_draws, round_robin, tsv_row, with_right_at
else:
    import digits_drawing as drawing
    import digits_questions as ask
    from common import even, llava_item, owed_draws, round_robin, tsv_row, with_right_at

from llava_mole.languages import LANGUAGES

SPLITS = ("train", "dev", "test")
SORT_OF = {
    "digit": "single",
    "parity": "single",
    "over_five": "single",
    "greater": "pair",
    "count": "several",
}
"""Kind of question -> sort of sheet it is asked about."""

LEAST_APART = 3
"""Between the two digits of a pair: telling 7 from 8 is a task of its own, asked by itself."""


@dataclass(frozen=True)
class Sheet:
    """A picture: what is written where, and on which paper."""

    key: str
    split: str
    sort: str
    paper: str
    written: tuple[drawing.Written, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The digits, from left to right for a pair."""
        return tuple(drawing.value(digit.record) for digit in self.written)


def answer(kind: str, sheet: Sheet) -> str | None:
    """The right answer, one of ``ask.answers(kind)``; None if the kind is not asked about it."""
    if SORT_OF[kind] != sheet.sort:
        return None
    first = sheet.values[0]
    if kind == "digit":
        return str(first)
    if kind == "parity":
        return "odd" if first % 2 else "even"
    if kind == "over_five":
        return None if first == 5 else "yes" if first > 5 else "no"
    if kind == "greater":
        return "left" if first > sheet.values[1] else "right"
    return str(len(sheet.values))


# --- sheets ---------------------------------------------------------------------------------------


def sheets(
    split: str,
    records: Sequence[int],
    *,
    renderings: int,
    pairs: int,
    several: int,
    seed: int,
) -> list[Sheet]:
    """The sheets of a split.

    Args:
        records: the handwriting to use.
        renderings: single sheets of each record.
        pairs, several: sheets of those sorts, with answers even.
    """
    rng = random.Random(f"{seed}:sheets:{split}")
    papers = round_robin(drawing.PAPERS[split], rng)
    turns = round_robin(records, rng)
    made = []
    for number in range(renderings):
        for record in records:
            size = rng.uniform(0.55, 0.85)
            room = (1 - size) / 2
            x, y = (0.5 + rng.uniform(-1, 1) * room for _ in range(2))
            written = (drawing.Written(record, x, y, size),)
            made.append(
                Sheet(
                    f"single-{split}-{record:04d}-{number}", split, "single", next(papers), written
                )
            )
    for number, left_greater in enumerate(even((True, False), pairs, rng)):
        first, second = next(turns), next(turns)
        while abs(drawing.value(first) - drawing.value(second)) < LEAST_APART:
            second = next(turns)
        if (drawing.value(first) > drawing.value(second)) != left_greater:
            first, second = second, first
        size = rng.uniform(0.42, 0.52)
        written = tuple(
            drawing.Written(
                record, x + rng.uniform(-0.02, 0.02), 0.5 + rng.uniform(-0.2, 0.2), size
            )
            for record, x in ((first, 0.26), (second, 0.74))
        )
        made.append(Sheet(f"pair-{split}-{number:04d}", split, "pair", next(papers), written))
    cells = [(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)]
    for number, count in enumerate(even(range(1, 5), several, rng)):
        size = rng.uniform(0.34, 0.42)
        written = tuple(
            drawing.Written(
                next(turns), x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05), size
            )
            for x, y in rng.sample(cells, count)
        )
        made.append(Sheet(f"several-{split}-{number:04d}", split, "several", next(papers), written))
    return made


# --- training -------------------------------------------------------------------------------------

_LANGUAGES_ASKED = {"digit": 3, "parity": 2, "over_five": 2, "greater": 6, "count": 6}
"""In how many of the six languages a kind is asked about one sheet."""


def training_items(members: Sequence[Sheet], seed: int) -> list[dict]:
    """LLaVA items, those of a sheet one after the other; languages take turns."""
    rng = random.Random(f"{seed}:train")
    forms = {
        (kind, language): round_robin(range(len(ask.TRAINED[kind][language])), rng)
        for kind in ask.KINDS
        for language in LANGUAGES
    }
    turns = dict.fromkeys(ask.KINDS, 0)
    items = []
    for sheet in members:
        for kind in ask.KINDS:
            right = answer(kind, sheet)
            if right is None:
                continue
            for _ in range(_LANGUAGES_ASKED[kind]):
                language = LANGUAGES[turns[kind] % len(LANGUAGES)]
                turns[kind] += 1
                form = next(forms[kind, language])
                items.append(
                    llava_item(
                        image=f"images/{sheet.key}.png",
                        question=ask.TRAINED[kind][language][form],
                        answer=ask.answer_text(kind, right, language),
                        domain="digits",
                        language=language,
                        kind=kind,
                        template=f"{kind}.{form}",
                    )
                )
    return items


# --- evaluation -----------------------------------------------------------------------------------


def evaluation_rows(name: str, members: Sequence[Sheet], count: int, seed: int) -> list[dict]:
    """Rows of eval_NAME.tsv without index and image: ``count`` a kind and language."""
    rows = []
    for kind in ask.KINDS:
        rng = random.Random(f"{seed}:eval:{name}:{kind}")
        draws = list(_draws(kind, members, count, rng))
        for language in LANGUAGES:
            forms = ask.HELD_OUT[kind][language]
            for number, (sheet, options, right) in enumerate(draws):
                form = number % len(forms)
                rows.append(
                    tsv_row(
                        question=forms[form],
                        options=[ask.answer_text(kind, option, language) for option in options],
                        right=right,
                        kind=kind,
                        picture=sheet.key,
                        source="digits",
                        group=options[right],
                        item=number,
                        template=f"{kind}.held_out.{form}",
                        split=name,
                        language=language,
                    )
                )
    return rows


def _draws(
    kind: str, members: Sequence[Sheet], count: int, rng: random.Random
) -> Iterator[tuple[Sheet, list[str], int]]:
    """(sheet, options, place of the right one)."""
    holders: Mapping[str, list[Sheet]] = defaultdict(list)
    for sheet in members:
        right = answer(kind, sheet)
        if right is not None:
            holders[right].append(sheet)
    turns = {right: round_robin(held, rng) for right, held in holders.items()}
    offered = [one for one in ask.answers(kind) if one in holders]
    if kind == "digit":
        places = even(range(4), count, rng)
        for right, options in owed_draws(offered, count, 4, rng):
            place = next(places)
            yield next(turns[right]), with_right_at(place, options, right), place
        return
    combinations = [(right, place) for right in offered for place in range(len(offered))]
    for right, place in even(combinations, count, rng):
        others = [one for one in offered if one != right]
        rng.shuffle(others)
        yield next(turns[right]), with_right_at(place, [right, *others], right), place
