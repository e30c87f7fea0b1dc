"""A benchmark's pictures and questions in a source: what was matched, as findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from llava_mole.data.quoting import short
from llava_mole.inspection.alike import SAME
from llava_mole.inspection.benchmarks import Benchmarks
from llava_mole.inspection.findings import Finding
from llava_mole.inspection.known_pictures import Match
from llava_mole.inspection.shown import Shown

_HOW = {
    "bytes": "the same file",
    "pixels": "the same pixels in another file",
    "looks": "it looks the same",
}


def picture_leaks(
    matches: Sequence[Match],
    benchmarks: Benchmarks,
    names: Sequence[str],
    shown: Shown,
    places: Mapping[int, str],
    asked: Mapping[int, set[int]],
    same_from: float = SAME,
) -> Iterator[Finding]:
    """One finding per picture and benchmark picture.

    Args:
        matches: `place` is a picture of the source.
        names: of the source's pictures.
        shown: which records show them.
        places: "file:line" of those records that are named.
        asked: record -> benchmark rows whose question it asks.
        same_from: correlation from which what looks the same is an error, not a warning.
    """
    for match in matches:
        rows = benchmarks.rows_of[match.known]
        showing = shown.records(match.place)
        both = [n for n in showing if asked.get(n, set()) & set(rows)]
        number = both[0] if both else showing[0]
        row = min(asked[number] & set(rows)) if both else rows[0]
        certain = match.correlation >= same_from
        how = _HOW[match.how]
        if match.how == "looks":
            how += f", correlation {match.correlation:.3f}"
            how = how if certain else how.replace("looks the same", "looks alike")
        asks = f", {len(both):,} ask its question" if both else ""
        yield Finding(
            "error" if certain else "warning",
            "leak-picture" if certain else "leak-picture-alike",
            places[number],
            f"image{_called(names[match.place])} is the benchmark's at {benchmarks.places[row]}: "
            f"{how}; rows there: {len(rows):,}; records here: {len(showing):,}{asks}",
            benchmarks.places[row],
        )


def named_records(
    matches: Sequence[Match],
    benchmarks: Benchmarks,
    shown: Shown,
    asked: Mapping[int, set[int]],
) -> set[int]:
    """Records that `picture_leaks` may name: the first of each picture, and those that also ask."""
    found = set()
    for match in matches:
        rows = set(benchmarks.rows_of[match.known])
        showing = shown.records(match.place)
        found.add(next((n for n in showing if asked.get(n, set()) & rows), showing[0]))
    return found


def question_leaks(
    asked: Iterable[tuple[str, Sequence[int]]], benchmarks: Benchmarks
) -> Iterator[Finding]:
    """One finding per record and question of a benchmark that it asks with all its options.

    Args:
        asked: ("file:line", places in `benchmarks.wordings.asked`) per record.
    """
    for where, numbers in asked:
        for number in numbers:
            question = benchmarks.wordings.asked[number]
            place = benchmarks.places[question.rows[0]]
            with_options = " and its options" if question.options else ""
            yield Finding(
                "warning", "leak-question", where,
                f"asks the benchmark's question{with_options} at {place}"
                f"{_more(len(question.rows) - 1, 'row')}: {short(question.question)}", place,
            )  # fmt: skip


def worded_alike(worded: Counter[str], benchmarks: Benchmarks) -> Iterator[Finding]:
    """One note per question of a benchmark that the source words the same with other options."""
    first: dict[str, int] = {}
    for asked in benchmarks.wordings.asked:
        first.setdefault(asked.question, asked.rows[0])
    for question, turns in sorted(worded.items(), key=lambda item: (-item[1], item[0])):
        yield Finding(
            "note", "question-worded-alike", benchmarks.places[first[question]],
            f"{short(question)} stands in {turns:,} questions of the source, not with these "
            "options: perhaps only a common wording", turns,
        )  # fmt: skip


def _called(name: str) -> str:
    return f" '{name}'" if name else ""


def _more(count: int, noun: str) -> str:
    if count < 1:
        return ""
    return f" (and {count:,} more {noun}{'s' if count > 1 else ''})"
