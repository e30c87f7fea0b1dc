"""Questions about documents: training items and evaluation rows.

A guess without the picture is at chance: evaluation questions come in blocks of four that have the
same words and the same four options, each of them right once and each letter once. Forms never
depend on the picture, and every picture is asked about in all six languages.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

if __package__:
    from data import documents_questions as ask
    from data.common import blocks, llava_item, round_robin, tsv_row, with_right_at
    from data.documents_plan import Document
else:
    import documents_questions as ask
    from common import blocks, llava_item, round_robin, tsv_row, with_right_at
    from documents_plan import Document

from llava_mole.languages import LANGUAGES

LANGUAGES_A_KIND = 3
"""In which a kind of question is asked about one trained picture."""
LITTLE_TEXT = ("form", "calendar", "number_sign")
"""Recipes with too little text, or text too small, to ask for its script."""


def answer(document: Document, kind: str) -> str | int | None:
    """The answer's key; None where the document is not asked this."""
    if kind == "document_type":
        return document.type
    if kind == "script":
        return None if document.recipe in LITTLE_TEXT else document.script
    return getattr(document, kind)


def training_items(documents: Sequence[Document], kinds: Sequence[str], seed: int) -> list[dict]:
    """LLaVA items, each kind in three of the six languages, which differ by document.

    Of a kind's answers all have equally many documents: where one has more (signs, the Latin
    script), some of them are not asked.
    """
    items = []
    for kind in kinds:
        rng = random.Random(f"{seed}:train:{kind}")
        for document, first in _evenly_answered(documents, kind, rng):
            right = answer(document, kind)
            assert right is not None
            for step in range(LANGUAGES_A_KIND):
                language = LANGUAGES[(first + step) % len(LANGUAGES)]
                forms = ask.TRAINED[kind][language]
                form = rng.randrange(len(forms))
                items.append(
                    llava_item(
                        image=f"images/{document.key}.png",
                        question=forms[form],
                        answer=ask.answer_text(kind, right, language),
                        domain="documents",
                        language=language,
                        kind=kind,
                        template=f"{kind}.{form}",
                    )
                )
    return sorted(items, key=lambda item: item["picture"])


def _evenly_answered(
    documents: Sequence[Document], kind: str, rng: random.Random
) -> Iterator[tuple[Document, int]]:
    """Documents to ask, as many for each answer as the rarest one has, and their first language.

    First languages take turns, so that each answer is given equally often in each.
    """
    holders = _holders(documents, kind)
    fewest = min((len(members) for members in holders.values()), default=0)
    for members in holders.values():
        for number, document in enumerate(rng.sample(members, fewest)):
            yield document, number % len(LANGUAGES)


def _holders(documents: Sequence[Document], kind: str) -> dict[str | int, list[Document]]:
    """Answer -> the documents that have it."""
    holders: dict[str | int, list[Document]] = defaultdict(list)
    for document in documents:
        right = answer(document, kind)
        if right is not None:
            holders[right].append(document)
    return holders


def evaluation_rows(
    split: str, documents: Sequence[Document], kinds: Sequence[str], count: int, seed: int
) -> list[dict]:
    """Rows of one TSV, without index and image: ``count`` per language and kind, held-out forms.

    The same pictures, options and letters are asked in all six languages, row for row. A kind with
    fewer than four different answers in this split (a tiny set) has no rows.
    """
    rows = []
    for kind in kinds:
        rng = random.Random(f"{seed}:eval:{split}:{kind}")
        draws = list(_draws(documents, kind, count, rng))
        for language in LANGUAGES:
            for number, (document, options, place) in enumerate(draws):
                forms = ask.HELD_OUT[kind][language]
                form = number // 4 % len(forms)
                rows.append(
                    tsv_row(
                        question=forms[form],
                        options=[ask.answer_text(kind, option, language) for option in options],
                        right=place,
                        kind=kind,
                        picture=document.key,
                        source="documents",
                        group=document.type,
                        item=number,
                        template=f"{kind}.held_out.{form}",
                        split=split,
                        language=language,
                    )
                )
    return rows


def _draws(
    documents: Sequence[Document], kind: str, count: int, rng: random.Random
) -> Iterator[tuple[Document, list[str | int], int]]:
    """(document, options, place of the right one), four with the same options in turn."""
    holders = _holders(documents, kind)
    if len(holders) < 4:
        return
    turns = {right: round_robin(members, rng) for right, members in holders.items()}
    for right, options, place in blocks([list(holders)], count, rng):
        yield next(turns[right]), with_right_at(place, options, right), place
