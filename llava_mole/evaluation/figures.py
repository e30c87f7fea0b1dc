"""Figures: every number of a report, worked out from predictions alone.

A group (`Record.group`) is right only if all of its passes are; its score is the least of theirs.
Category and split are those of pass 0. Accuracy is the mean over groups, as MMBench and VLMEvalKit
have it, not the mean of categories. Beside it stand: the first passes alone, the share of replies
without a single choice in them, and what VLMEvalKit's rule would have made of the same replies.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llava_mole.evaluation.metrics import is_closed, yes_no_rates
from llava_mole.evaluation.records import Record, Run
from llava_mole.evaluation.statistics import score_interval
from llava_mole.evaluation.vlmevalkit import rule_choice
from llava_mole.evaluation.wording import AFFIRMATION
from llava_mole.languages import LANGUAGES


@dataclass(frozen=True)
class Group:
    """One question with all of its passes.

    Attributes:
        head: pass 0.
        score: the least of the passes'; None where answers are hidden.
        first: pass 0's.
        asks: how many passes.
        right_asks: their scores added up.
        unparsed, unfinished: passes without a choice; passes cut at max_new_tokens.
        rule: 1 or 0 as VLMEvalKit's rule has it, without a judge; None where nothing is read.
        chance: of guessing all passes right; None for texts.
    """

    head: Record
    score: float | None
    first: float | None
    asks: int
    right_asks: float
    unparsed: int
    unfinished: int
    rule: float | None
    chance: float | None


@dataclass(frozen=True)
class Figure:
    """One row of a report.

    Attributes:
        by: "all", "mean" (of the languages), "language", "l2-category", "category", "split", or
            two of them, "language, category".
        name: which one.
        n: groups. asks: passes.
        accuracy: mean score of groups. low, high: its 95 % interval, bootstrap over questions
            (a question's versions in several languages are drawn together, see `units_of`);
            Wilson's where all scores are 0 or all are 1, see `statistics.score_interval`.
        first: accuracy of first passes alone ("vanilla"). every: of all passes, each for itself.
        unparsed, unfinished: shares of passes.
        vlmevalkit: accuracy under VLMEvalKit's rule; None where nothing was read from a reply.
        chance: of uniform guesses; None for texts.
    """

    by: str
    name: str
    n: int
    asks: int
    accuracy: float
    low: float
    high: float
    first: float
    every: float
    unparsed: float
    unfinished: float
    vlmevalkit: float | None
    chance: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def group_records(records: Sequence[Record]) -> list[Group]:
    """In the order of their first record."""
    by_group: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_group[record.group].append(record)
    return [_group(sorted(rows, key=lambda row: row.turn)) for rows in by_group.values()]


def _group(rows: Sequence[Record]) -> Group:
    scores = [row.score for row in rows]
    known = [score for score in scores if score is not None]
    whole = len(known) == len(rows)
    read = all(row.options and row.scores is None for row in rows)
    by_rule = [float(rule_choice(row.reply, row.options) == row.answer) for row in rows if read]
    chance = math.prod(1 / len(row.options) for row in rows) if rows[0].options else None
    return Group(
        head=rows[0],
        score=min(known) if whole else None,
        first=rows[0].score,
        asks=len(rows),
        right_asks=sum(known),
        unparsed=sum(bool(row.options) and row.choice is None for row in rows),
        unfinished=sum(not row.finished for row in rows),
        rule=min(by_rule) if read and whole else None,
        chance=chance,
    )


def units_of(groups: Sequence[Group]) -> dict[str, str]:
    """Name of a group -> the unit it is drawn with: its question_id, the same in all languages.

    Where an id is that of groups in several files of one language (a bare index, which every file
    counts from 0), those are different questions: file and id are the unit then.
    """
    files: dict[tuple[str, str], set[str]] = defaultdict(set)
    for head in (group.head for group in groups):
        files[head.question_id, head.language].add(head.file)
    several = {name for (name, _), found in files.items() if len(found) > 1}
    return {
        head.group: f"{head.question_id}\0{head.file}"
        if head.question_id in several
        else head.question_id
        for head in (group.head for group in groups)
    }


def answer_type(answers: Sequence[str]) -> str:
    """ "closed" (yes or no) or "open"; "" where answers are no texts."""
    return "" if not answers else "closed" if is_closed(answers) else "open"


BY: dict[str, Callable[[Record], str]] = {
    "all": lambda record: "all",
    "language": lambda record: record.language,
    "l2-category": lambda record: record.l2,
    "category": lambda record: record.category,
    "split": lambda record: record.split,
    "answer type": lambda record: answer_type(record.answers),
    "language, l2-category": lambda record: f"{record.language}, {record.l2}" if record.l2 else "",
    "language, category": lambda record: (
        f"{record.language}, {record.category}" if record.category else ""
    ),
}


def figures(run: Run) -> list[Figure]:
    """All rows of a run's report; none where answers are hidden."""
    groups = [group for group in group_records(run.records) if group.score is not None]
    units = units_of(groups)
    found: list[Figure] = []
    for by, name_of in BY.items():
        cells: dict[str, list[Group]] = defaultdict(list)
        for group in groups:
            cells[name_of(group.head)].append(group)
        names = [name for name in cells if name]
        if by.startswith("language"):
            names.sort(key=lambda name: LANGUAGES.index(name.split(",")[0]))
            if by != "language" and len({name.split(",")[0] for name in names}) < 2:
                continue
        else:
            names.sort()
        found += [_figure(by, name, cells[name], units) for name in names]
        if by == "language" and len(names) > 1:
            found.append(_mean_of_languages(groups, found[-len(names) :], units))
    return found


def _figure(by: str, name: str, groups: Sequence[Group], units: Mapping[str, str]) -> Figure:
    asks = sum(group.asks for group in groups)
    scores = [group.score for group in groups if group.score is not None]
    _, low, high = score_interval(scores, [units[group.head.group] for group in groups])
    rules = [group.rule for group in groups if group.rule is not None]
    chances = [group.chance for group in groups if group.chance is not None]
    firsts = [group.first for group in groups if group.first is not None]
    return Figure(
        by, name, len(groups), asks,
        accuracy=_mean(scores), low=low, high=high,
        first=_mean(firsts), every=sum(group.right_asks for group in groups) / asks,
        unparsed=sum(group.unparsed for group in groups) / asks,
        unfinished=sum(group.unfinished for group in groups) / asks,
        vlmevalkit=_mean(rules) if len(rules) == len(groups) else None,
        chance=_mean(chances) if len(chances) == len(groups) else None,
    )  # fmt: skip


def _mean_of_languages(
    groups: Sequence[Group], rows: Sequence[Figure], units: Mapping[str, str]
) -> Figure:
    scores = [group.score for group in groups if group.score is not None]
    _, low, high = score_interval(
        scores,
        [units[group.head.group] for group in groups],
        [group.head.language for group in groups],
    )
    rules = [row.vlmevalkit for row in rows if row.vlmevalkit is not None]
    chances = [row.chance for row in rows if row.chance is not None]
    return Figure(
        "mean", "of languages", sum(row.n for row in rows), sum(row.asks for row in rows),
        accuracy=_mean([row.accuracy for row in rows]), low=low, high=high,
        first=_mean([row.first for row in rows]), every=_mean([row.every for row in rows]),
        unparsed=_mean([row.unparsed for row in rows]),
        unfinished=_mean([row.unfinished for row in rows]),
        vlmevalkit=_mean(rules) if len(rules) == len(rows) else None,
        chance=_mean(chances) if len(chances) == len(rows) else None,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def yes_no(run: Run) -> dict[str, dict[str, float]]:
    """POPE's figures by category, for questions whose two options say yes and no in their language:
    {"all": {"n": …, "accuracy": …}, category: {…}}."""
    cells: dict[str, list[tuple[str | None, str]]] = defaultdict(list)
    for row in run.records:
        yes, no = AFFIRMATION[row.language]
        said = {
            letter: "Yes" if text.casefold() in yes else "No"
            for letter, text in row.options.items()
            if text.casefold() in yes | no
        }
        if len(row.options) != 2 or set(said.values()) != {"Yes", "No"} or not row.answer:
            continue
        pair = (said[row.choice] if row.choice else None, said[row.answer])
        cells["all"].append(pair)
        for category in filter(None, (part.strip() for part in row.category.split(","))):
            cells[category].append(pair)  # POPE's picture counts in each of its categories
    return {name: {"n": len(pairs), **yes_no_rates(pairs)} for name, pairs in cells.items()}
