"""Who is asked what about a chart, and among which options.

In evaluation files every kind comes in blocks of four: the same question, the same four options,
each of them right once, at each letter once. A guess without the picture is right once a block.
Where options must be in the picture (places, colours of slices), a block is one family of charts
(`charts_plan`); elsewhere it is four charts with four different answers.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

if __package__:
    from data import charts_questions as ask
    from data.charts_plan import FAMILY, Chart
    from data.common import blocks, llava_item, round_robin, tsv_row, with_right_at
else:
    import charts_questions as ask
    from charts_plan import FAMILY, Chart
    from common import blocks, llava_item, round_robin, tsv_row, with_right_at

IN_ONE_FAMILY = ("place", "largest", "largest_bar")
"""Kinds whose four options must all be in the picture."""
LANGUAGES_A_CHART = {"chart_type": 1}
"""Languages in which a trained chart is asked about a kind: few where charts are many."""
OTHERWISE = 4


def training_items(charts: Sequence[Chart], kinds: Sequence[str], seed: int) -> list[dict]:
    """LLaVA items: per chart and kind one question in each of some languages, drawn evenly."""
    items = []
    for kind in kinds:
        rng = random.Random(f"{seed}:train:{kind}")
        languages = round_robin(ask.LANGUAGES, rng)
        for chart in charts:
            if kind not in chart.answers:
                continue
            for language in islice(languages, LANGUAGES_A_CHART.get(kind, OTHERWISE)):
                forms = ask.TRAINED[kind][language]
                form = rng.randrange(len(forms))
                items.append(
                    llava_item(
                        image=f"images/{chart.key}.png",
                        question=forms[form],
                        answer=ask.answer_text(kind, chart.answers[kind], language),
                        domain="charts",
                        language=language,
                        kind=kind,
                        template=f"{kind}.{form}",
                    )
                )
    return items


def evaluation_rows(
    split_name: str, charts: Sequence[Chart], kinds: Sequence[str], count: int, seed: int
) -> list[dict]:
    """Rows of one TSV, without index and image: ``count`` per language and kind, in held-out forms.

    The same charts, options and letters in all six languages, row for row. A kind that this split
    has no block for (a tiny set) has no rows.
    """
    rows = []
    for kind in kinds:
        draws = list(_draws(kind, charts, count, random.Random(f"{seed}:eval:{split_name}:{kind}")))
        for language in ask.LANGUAGES:
            for number, (chart, options, place) in enumerate(draws):
                forms = ask.HELD_OUT[kind][language]
                form = number // FAMILY % len(forms)
                ordered = with_right_at(place, options, chart.answers[kind])
                rows.append(
                    tsv_row(
                        question=forms[form],
                        options=[ask.answer_text(kind, answer, language) for answer in ordered],
                        right=place,
                        kind=kind,
                        picture=chart.key,
                        source="charts",
                        group=chart.drawing,
                        item=number,
                        template=f"{kind}.held_out.{form}",
                        split=split_name,
                        language=language,
                    )
                )
    return rows


def _draws(
    kind: str, charts: Sequence[Chart], count: int, rng: random.Random
) -> Iterator[tuple[Chart, list[str], int]]:
    """(chart, four answers, place of the right one), four of a block in turn."""
    asked = [chart for chart in charts if kind in chart.answers]
    if kind in IN_ONE_FAMILY:
        by_key = {chart.key: chart for chart in asked}
        families: dict[str, list[str]] = defaultdict(list)
        for chart in asked:
            families[chart.family].append(chart.key)
        whole = [
            keys
            for keys in families.values()
            if len({by_key[key].answers[kind] for key in keys}) == FAMILY
        ]
        if whole:
            for key, block, place in blocks(whole, count, rng):
                yield by_key[key], [by_key[other].answers[kind] for other in block], place
        return
    holders: dict[str, list[Chart]] = defaultdict(list)
    for chart in asked:
        holders[chart.answers[kind]].append(chart)
    if len(holders) < FAMILY:
        return
    turns = {answer: round_robin(members, rng) for answer, members in holders.items()}
    for answer, options, place in blocks([sorted(holders)], count, rng):
        yield next(turns[answer]), options, place
