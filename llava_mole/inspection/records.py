"""The first pass: every record's structure, words, language and length; which pictures it shows."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llava_mole.data.sample import IMAGE, ImageRef, Sample
from llava_mole.data.sources import Source
from llava_mole.errors import DataError
from llava_mole.inspection.checks import check_language, check_words
from llava_mole.inspection.findings import Finding
from llava_mole.inspection.language import is_known
from llava_mole.inspection.lengths import Measure
from llava_mole.inspection.shown import Places
from llava_mole.inspection.wording import Wordings

RECORDS = 256
"""a part"""

_PLACE = re.compile(r"(.+?:\d+): (.*)", re.DOTALL)


@dataclass(frozen=True)
class RecordState:
    """What all parts share."""

    source: Source
    measure: Measure | None
    wordings: Wordings


@dataclass
class Tables:
    """Counts over samples; they add up."""

    samples: int = 0
    domains: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    """turns of a sample -> samples"""
    pictures: Counter[int] = field(default_factory=Counter)
    """pictures of a sample -> samples"""
    answers: Counter[int] = field(default_factory=Counter)
    """characters of an answer -> answers"""
    tokens: Counter[int] = field(default_factory=Counter)
    """tokens of a sample -> samples"""
    unjudged: Counter[str] = field(default_factory=Counter)
    """declared language that the identifier does not know -> samples"""
    unjudged_at: dict[str, str] = field(default_factory=dict)
    """declared language that the identifier does not know -> its first sample's place"""

    def add(self, other: Tables) -> None:
        self.samples += other.samples
        for name in ("domains", "languages", "turns", "pictures", "answers", "tokens", "unjudged"):
            getattr(self, name).update(getattr(other, name))
        self.unjudged_at = {**other.unjudged_at, **self.unjudged_at}


@dataclass
class RecordPart:
    """What a part of the records gave.

    Attributes:
        numbers: (n,) of the samples.
        keys: (n,) 16 bytes that tell a sample's conversation and pictures.
        shown: where pictures are shown that are there.
        asked: (number, places in `Wordings.asked`).
        worded: benchmark question -> user turns that word one like it.
    """

    records: int
    findings: list[Finding]
    tables: Tables
    numbers: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    shown: Places
    asked: list[tuple[int, list[int]]]
    worded: Counter[str]


def inspect_records(state: RecordState, part: range) -> RecordPart:
    """Read one part of a source; see `RecordPart`. No picture is opened."""
    source = state.source
    nothing = np.zeros(0, np.int64), np.zeros(0, "S16"), Places.of([])
    out = RecordPart(len(part), [], Tables(), *nothing, [], Counter())
    keys: list[tuple[int, bytes]] = []
    shown: list[tuple[bytes, int, int]] = []
    missing: list[tuple[str, str]] = []
    for number, where, found in source.walk(part.start, part.stop, note_missing=missing):
        absent = take(missing)
        if isinstance(found, DataError):
            out.findings.append(of_error(found, where, "record"))
            continue
        root = source.pictures.root
        gone = set() if root is None else {root / name for _, name in absent}
        for _, name in absent:
            message = f"image {name[:200]!r} not found under '{root}'"
            out.findings.append(Finding("error", "image-missing", where, message, name[:200]))
        out.findings += check_words(found)
        out.findings += check_language(found)
        _measure(found, state.measure, out)
        _count(found, out.tables)
        names = [name_of(image) for image in found.images]
        keys.append((number, _key_of(found, names)))
        for slot, image in enumerate(found.images):
            if image not in gone:
                shown.append((names[slot], number, slot))
        if state.wordings.asked:
            _look_up(found, number, state.wordings, out)
    out.numbers = np.array([number for number, _ in keys], np.int64)
    out.keys = np.array([key for _, key in keys], "S16")
    out.shown = Places.of(shown)
    return out


def take(missing: list[tuple[str, str]]) -> list[tuple[str, str]]:
    taken = list(missing)
    missing.clear()
    return taken


def of_error(error: DataError, where: str, check: str) -> Finding:
    """An error's own place and its words; `where` if it tells no place of its own."""
    text = str(error)
    told = _PLACE.match(text)
    if text.startswith(f"{where}: "):
        text = text[len(where) + 2 :]
    elif told and told[1].rpartition(":")[0] in (where, where.rpartition(":")[0]):
        where, text = told[1], told[2]
    return Finding("error", check, where, text)


def name_of(image: ImageRef) -> bytes:
    """16 bytes that tell a picture's file, or its content where the data hold it."""
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16, person=b"content").digest()
    return hashlib.blake2b(os.fsencode(image), digest_size=16, person=b"path").digest()


def _key_of(sample: Sample, names: list[bytes]) -> bytes:
    key = hashlib.blake2b(digest_size=16)
    for text in (f"{turn.role} {turn.text}" for turn in sample.turns):
        content = text.encode("utf-8", "surrogatepass")
        key.update(b"%d " % len(content) + content)
    for name in names:
        key.update(name)
    return key.digest()


def _measure(sample: Sample, measure: Measure | None, out: RecordPart) -> None:
    if measure is None:
        return
    try:
        length, cut = measure.tokens(sample)
    except DataError as error:
        token = measure.processor.image_token
        # <image> itself stands for a picture in every text; readers count it.
        typed = token != IMAGE and any(token in turn.text for turn in sample.turns)
        check = "placeholder-in-text" if typed else "chat-template"
        out.findings.append(of_error(error, sample.source, check))
        return
    out.tables.tokens[length] += 1
    if cut is not None:
        out.findings.append(cut)


def _count(sample: Sample, tables: Tables) -> None:
    tables.samples += 1
    tables.domains[sample.domain] += 1
    tables.languages[sample.language] += 1
    tables.turns[len(sample.turns)] += 1
    tables.pictures[len(sample.images)] += 1
    tables.answers.update(len(turn.text) for turn in sample.turns if turn.role == "assistant")
    if not is_known(sample.language):
        tables.unjudged[sample.language] += 1
        tables.unjudged_at.setdefault(sample.language, sample.source)


def _look_up(sample: Sample, number: int, wordings: Wordings, out: RecordPart) -> None:
    asked: list[int] = []
    for turn in sample.turns:
        if turn.role == "user":
            exact, worded = wordings.find(turn.text.replace(IMAGE, "\n"))
            asked += exact
            out.worded.update(worded)
    if asked:
        out.asked.append((number, sorted(set(asked))))
