"""inspect: read all of a source, look at every picture, compare with benchmarks, report."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llava_mole.data.sources import Source, SourceSpec, open_source
from llava_mole.errors import DataError
from llava_mole.inspection.alike import SAME
from llava_mole.inspection.benchmarks import Benchmarks, blank, read_benchmarks
from llava_mole.inspection.duplicates import repeated, same_pictures
from llava_mole.inspection.findings import Finding, Findings
from llava_mole.inspection.fingerprints import FINGERPRINT, Fingerprints, stacked
from llava_mole.inspection.known_pictures import Match
from llava_mole.inspection.leaks import (
    named_records,
    picture_leaks,
    question_leaks,
    worded_alike,
)
from llava_mole.inspection.lengths import Measure
from llava_mole.inspection.parallel import in_order, ranges
from llava_mole.inspection.pictures import (
    PICTURES,
    PictureState,
    inspect_pictures,
    shown_name,
)
from llava_mole.inspection.records import (
    RECORDS,
    RecordState,
    Tables,
    inspect_records,
    of_error,
)
from llava_mole.inspection.result import Inspection
from llava_mole.inspection.shown import Places, Shown
from llava_mole.ranks import cores


def inspect(
    spec: SourceSpec,
    *,
    against: Sequence[str | Path] = (),
    measure: Measure | None = None,
    same_from: float = SAME,
    json_file: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> Inspection:
    """Validate every record and every picture of a source.

    Args:
        spec: the source.
        against: benchmarks whose pictures and questions must not be in it.
        measure: counts tokens; None: they are not counted.
        same_from: correlation from which a picture that looks like a benchmark's is an error.
        json_file: takes every finding.
        workers: processes; None: one a core.
        progress: show bars.
        cache_dir: see `open_source`.

    Raises:
        ConfigError, DataError: the source or a benchmark cannot be read at all, or the JSON file
            not be written.
    """
    source = open_source(spec, cache_dir=cache_dir)
    workers = workers or cores()
    with Findings(json_file) as findings:
        benchmarks, unread = read_benchmarks(against, workers, progress)
        findings.add(unread)
        findings.add(blank(benchmarks))
        first = _first_pass(source, benchmarks, measure, findings, workers, progress)
        if source.container.damage is not None:
            where = str(source.container.path)
            findings.add([of_error(source.container.damage, where, "record")])
        _repeated_samples(source, first, findings)
        for code, samples in sorted(first.tables.unjudged.items()):
            message = f"{code!r} ({samples:,} samples) is no language that can be checked"
            where = first.tables.unjudged_at[code]
            findings.add([Finding("note", "language-unknown", where, message, code)])
        second = _second_pass(source, benchmarks, first, findings, workers, progress)
        _leaks(source, benchmarks, first, second, same_from, findings)
        inspection = Inspection(
            str(spec.path), source.describe(), len(source), first.tables, len(second.names),
            second.unreadable, second.widths, benchmarks.summary,
            measure.described if measure else "", findings,
        )  # fmt: skip
        findings.close(inspection.facts())
    return inspection


@dataclass
class _First:
    """Of all records."""

    tables: Tables
    numbers: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    shown: Shown
    asked: dict[int, list[int]]
    worded: Counter[str]


@dataclass
class _Second:
    """Of all pictures."""

    names: list[str]
    matches: list[Match]
    widths: Counter[int]
    unreadable: int


def _first_pass(
    source: Source,
    benchmarks: Benchmarks,
    measure: Measure | None,
    findings: Findings,
    workers: int,
    progress: bool,
) -> _First:
    tables, worded = Tables(), Counter[str]()
    asked: dict[int, list[int]] = {}
    numbers, keys = [np.zeros(0, np.int64)], [np.zeros(0, "S16")]
    shown: list[Places] = []
    state = RecordState(source, measure, benchmarks.wordings)
    parts = ranges(len(source), RECORDS)
    with tqdm(total=len(source), desc="records", unit="record", disable=not progress) as bar:
        for part in in_order(inspect_records, state, parts, workers):
            findings.add(part.findings)
            tables.add(part.tables)
            numbers.append(part.numbers)
            keys.append(part.keys)
            shown.append(part.shown)
            asked.update(part.asked)
            worded.update(part.worded)
            bar.update(part.records)
    return _First(
        tables, np.concatenate(numbers), np.concatenate(keys), Shown(Places.joined(shown)), asked,
        worded,
    )  # fmt: skip


def _repeated_samples(source: Source, first: _First, findings: Findings) -> None:
    for place, earlier in repeated(first.keys):
        where = source.container.where(int(first.numbers[place]))
        before = source.container.where(int(first.numbers[earlier]))
        message = f"the same conversation about the same pictures as {before}"
        findings.add([Finding("warning", "duplicate", where, message, before)])


def _second_pass(
    source: Source,
    benchmarks: Benchmarks,
    first: _First,
    findings: Findings,
    workers: int,
    progress: bool,
) -> _Second:
    firsts = first.shown.first
    out = _Second([], [], Counter(), 0)
    state = PictureState(source, benchmarks.pictures)
    parts = [firsts[part.start : part.stop] for part in ranges(len(firsts), PICTURES)]
    root = source.pictures.root
    with tempfile.TemporaryFile() as file:
        prints = _on_disk(file, len(firsts))
        read = np.zeros(len(firsts), bool)
        with tqdm(total=len(firsts), desc="pictures", unit="picture", disable=not progress) as bar:
            for part in in_order(inspect_pictures, state, parts, workers):
                start = len(out.names)
                for place, found in part.findings:
                    findings.add([_with_count(found, len(first.shown.records(start + place)))])
                out.names += [shown_name(name, root) for name in part.names]
                stop = len(out.names)
                prints[start:stop], read[start:stop] = part.prints, part.read
                longer = np.maximum(part.prints["width"], part.prints["height"])[part.read]
                out.widths.update(longer.tolist())
                out.matches += [
                    Match(start + m.place, m.known, m.how, m.correlation) for m in part.matches
                ]
                bar.update(len(part.names))
        out.unreadable = int(len(read) - read.sum())
        _same_pictures(source, first.shown, out.names, prints, read, findings)
        del prints
    return out


def _on_disk(file: Any, count: int) -> Fingerprints:
    """(count,) fingerprints in a file without a name: they need no memory that others want.

    Raises DataError if the disk has no room for them.
    """
    if not count:
        return stacked([])
    if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process
        size = count * FINGERPRINT.itemsize
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: no room for a temporary file of {size:,} bytes "
                f"({error}); set TMPDIR to a folder with more"
            ) from error
    else:
        file.truncate(count * FINGERPRINT.itemsize)
    return np.memmap(file, FINGERPRINT, "r+", shape=(count,))


_SAME = {
    "bytes": ("picture-twice", "is the same file as"),
    "pixels": ("picture-twice", "has the same pixels as"),
    "looks": ("picture-alike", "looks the same as"),
}


def _same_pictures(
    source: Source,
    shown: Shown,
    names: Sequence[str],
    prints: Fingerprints,
    read: NDArray[np.bool_],
    findings: Findings,
) -> None:
    for place, earlier, how, score in same_pictures(prints, read):
        check, words = _SAME[how]
        where, before = (source.container.where(int(shown.first[n, 0])) for n in (place, earlier))
        name, other = names[place], names[earlier]
        called = f"image '{name}' {words} '{other}'" if name else f"image {words} that"
        alike = f" (correlation {score:.3f})" if how == "looks" else ""
        message = f"{called} of {before}{alike}"
        findings.add([Finding("warning", check, where, message, other or before)])


def _leaks(
    source: Source,
    benchmarks: Benchmarks,
    first: _First,
    second: _Second,
    same_from: float,
    findings: Findings,
) -> None:
    if not benchmarks.places:
        return
    asked_rows = {
        number: {row for n in places for row in benchmarks.wordings.asked[n].rows}
        for number, places in first.asked.items()
    }
    numbers = named_records(second.matches, benchmarks, first.shown, asked_rows)
    places = {number: source.container.where(number) for number in numbers}
    findings.add(
        picture_leaks(
            second.matches, benchmarks, second.names, first.shown, places, asked_rows, same_from
        )
    )
    asked = ((source.container.where(n), found) for n, found in sorted(first.asked.items()))
    findings.add(question_leaks(asked, benchmarks))
    findings.add(worded_alike(first.worded, benchmarks))


def _with_count(finding: Finding, records: int) -> Finding:
    """A picture's finding, with how many records show it."""
    if records < 2:
        return finding
    more = f" (and {records - 1:,} more records show it)"
    return Finding(
        finding.severity, finding.check, finding.where, finding.message + more, finding.value
    )
