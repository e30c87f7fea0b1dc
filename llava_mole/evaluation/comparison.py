"""Two runs on the same questions: paired tests, differences with intervals, a picture.

Pairs are groups (a question with all its passes). McNemar's exact test asks whether one model is
right where the other is not more often than the other way round. In a row that pools a question's
languages these are no independent trials: there each question's whole difference changes sign at
random (10,000 seeded draws), as it would if the models were alike; p-values of one division
(languages, categories) are corrected by Holm for being several. Intervals of differences are
bootstraps over questions, a question's languages drawn together (`figures.units_of`); where every
question differs by the same (by nothing, say) they have no width, whatever the number of questions.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llava_mole.errors import DataError
from llava_mole.evaluation.figures import BY, Group, group_records, units_of
from llava_mole.evaluation.journal import differences
from llava_mole.evaluation.records import Run
from llava_mole.evaluation.results import cell, percent, printable
from llava_mole.evaluation.statistics import bootstrap_mean, holm, mcnemar, sign_flip
from llava_mole.languages import LANGUAGES

SAME = ("benchmark", "metric", "format")
"""Keys of a head that two runs must share to be compared at all."""


@dataclass(frozen=True)
class Difference:
    """Second run against first in one part of the questions.

    Attributes:
        by, name: as in `figures.Figure`.
        n: pairs.
        first, second: accuracies. difference: second less first; low, high: its 95 % interval.
        only_first, only_second: questions that only this one has right; None for graded scores.
        p: of McNemar's exact test; where questions are asked in several languages, of a sign-flip
            test over questions. p_holm: corrected within its division.
    """

    by: str
    name: str
    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int | None
    only_second: int | None
    p: float | None
    p_holm: float | None


def pair(first: Run, second: Run, *, common: bool = False) -> list[tuple[Group, Group]]:
    """Groups of two runs on the same questions, side by side.

    Args:
        common: leave out what only one of them asked, instead of refusing.

    Raises:
        DataError: other benchmarks or questions, other passes of a question, or hidden answers.
    """
    for key in SAME:
        if first.head.get(key) != second.head.get(key):
            raise DataError(
                f"runs of {key} {first.head.get(key)!r} and {second.head.get(key)!r} can't be "
                "compared"
            )
    left = {group.head.group: group for group in group_records(first.records)}
    right = {group.head.group: group for group in group_records(second.records)}
    both = [name for name in left if name in right]
    alone = len(left) + len(right) - 2 * len(both)
    if not both or (alone and not common):
        raise DataError(
            f"{len(both)} questions in common, {len(left) - len(both)} in the first run alone, "
            f"{len(right) - len(both)} in the second"
            + ("" if not both else "; --common compares those that both have")
        )
    pairs = [(left[name], right[name]) for name in both]
    for one, other in pairs:
        if one.asks != other.asks:
            raise DataError(
                f"question {one.head.group}: {one.asks} passes in the first run, {other.asks} in "
                "the second"
            )
        other_than = [
            name
            for name in ("question", "options", "answer", "answers")
            if getattr(one.head, name) != getattr(other.head, name)
        ]
        if other_than:
            raise DataError(
                f"question {one.head.group}: its {' and '.join(other_than)} in the first run "
                "differ from the second's: they are not the same question"
            )
        if one.score is None or other.score is None:
            raise DataError(f"question {one.head.group}: its answer is hidden, nothing to compare")
    return pairs


def compare(pairs: Sequence[tuple[Group, Group]]) -> list[Difference]:
    """Differences overall, by language, l2-category, category and split."""
    units = units_of([one for one, _ in pairs])
    found: list[Difference] = []
    for by, name_of in BY.items():
        cells: dict[str, list[tuple[Group, Group]]] = defaultdict(list)
        for one, other in pairs:
            cells[name_of(one.head)].append((one, other))
        names = sorted(name for name in cells if name)
        if by.startswith("language"):
            names.sort(key=lambda name: (LANGUAGES.index(name.split(",")[0]), name))
            if by != "language" and len({name.split(",")[0] for name in names}) < 2:
                continue
        rows = [_difference(by, name, cells[name], units) for name in names]
        tested = [row.p for row in rows if row.p is not None]
        corrected = iter(holm(tested))
        found += [row if row.p is None else replace(row, p_holm=next(corrected)) for row in rows]
        if by == "language" and len(rows) > 1:
            mean = _difference("mean", "of languages", pairs, units)
            found.append(replace(mean, p_holm=mean.p))  # one test, nothing to correct
    return found


def _difference(
    by: str, name: str, pairs: Sequence[tuple[Group, Group]], units: Mapping[str, str]
) -> Difference:
    first = [one.score or 0.0 for one, _ in pairs]
    second = [other.score or 0.0 for _, other in pairs]
    questions = [units[one.head.group] for one, _ in pairs]
    strata = [one.head.language for one, _ in pairs] if by == "mean" else None
    change = [b - a for a, b in zip(first, second, strict=True)]
    difference, low, high = bootstrap_mean(change, questions, strata)
    graded = any(score not in (0.0, 1.0) for score in [*first, *second])
    only_first = None if graded else sum(a > b for a, b in zip(first, second, strict=True))
    only_second = None if graded else sum(b > a for a, b in zip(first, second, strict=True))
    p = None
    if len(set(questions)) < len(pairs):
        # A question's languages are not independent trials, as McNemar's test would have them.
        p = sign_flip(change, questions, strata)
    elif only_first is not None and only_second is not None:
        p = mcnemar(only_first, only_second)
    return Difference(
        by, name, len(pairs),
        first=bootstrap_mean(first, questions, strata, draws=1)[0],
        second=bootstrap_mean(second, questions, strata, draws=1)[0],
        difference=difference, low=low, high=high,
        only_first=only_first, only_second=only_second, p=p, p_holm=None,
    )  # fmt: skip


def different_settings(first: Run, second: Run) -> list[str]:
    """What else than the model is not the same in two runs: prompt, passes, data, …"""
    keys = ("protocol", "data", "selection", "extraction_version")
    return differences(
        {key: first.head.get(key) for key in keys}, {key: second.head.get(key) for key in keys}
    )


# ---------------------------------------------------------------------- showing it


def to_json(rows: Sequence[Difference]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def to_csv(rows: Sequence[Difference]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = list(Difference.__dataclass_fields__)
    table.writerow(names)
    for row in rows:
        values = [getattr(row, name) for name in names]
        table.writerow(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v
                        for v in values])  # fmt: skip
    return text.getvalue()


def to_markdown(rows: Sequence[Difference], first: str, second: str) -> str:
    """Percent; the difference in points."""
    lines = []
    for by in dict.fromkeys(row.by for row in rows if row.by != "mean"):
        lines += [
            f"| {by} | n | {cell(first)} | {cell(second)} | difference | 95 % interval "
            "| only first / second | p | p (Holm) |",
            "|---|---:|---:|---:|---:|---|---:|---:|---:|",
        ]
        kinds = (by, "mean") if by == "language" else (by,)
        for row in (row for row in rows if row.by in kinds):
            name = "mean of languages" if row.by == "mean" else cell(row.name)
            only = "–" if row.only_first is None else f"{row.only_first} / {row.only_second}"
            lines.append(
                f"| {name} | {row.n:,} | {percent(row.first)} | {percent(row.second)} "
                f"| {100 * row.difference:+.1f} | {100 * row.low:+.1f} to {100 * row.high:+.1f} "
                f"| {only} | {_p(row.p)} | {_p(row.p_holm)} |"
            )
        lines.append("")
    return "\n".join(lines)


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def draw(rows: Sequence[Difference], path: Path, first: str, second: str) -> None:
    """A dot and its 95 % interval for each language and category, the whole on top. Names are
    drawn as they are: `$` starts no formula."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kept = [row for row in rows if row.by in ("all", "mean", "language", "l2-category", "category")]
    labels = [
        f"{'mean of languages' if row.by == 'mean' else printable(row.name)}  ({row.n:,})"
        for row in kept
    ]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.28 * len(kept)), layout="constrained")
    colours = {"all": "black", "mean": "black", "language": "tab:blue", "category": "tab:green"}
    for place, row in enumerate(reversed(kept)):
        colour = colours.get(row.by, "tab:purple")
        axes.plot([100 * row.low, 100 * row.high], [place, place], color=colour, linewidth=2)
        axes.plot(100 * row.difference, place, "o", color=colour)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(kept)), reversed(labels), fontsize=8, parse_math=False)
    axes.set_xlabel("accuracy, difference in points (95 % interval)")
    title = printable(f"{second} against {first}")
    axes.set_title(title, fontsize=10, parse_math=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
