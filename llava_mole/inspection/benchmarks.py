"""Benchmarks to look for: their pictures and questions, also of splits whose answers are hidden.

A TSV in MMBench's schema (columns question, image, perhaps A to D), or any source that training
could read. Rows that cannot be read are told, not skipped over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from llava_mole.data.choices import LETTERS
from llava_mole.data.containers import Container, Tsv, open_container
from llava_mole.data.images import load_image
from llava_mole.data.pictures import Pictures
from llava_mole.data.sample import IMAGE, ImageRef
from llava_mole.data.sources import Source, SourceSpec, open_source
from llava_mole.errors import DataError
from llava_mole.inspection.findings import Finding
from llava_mole.inspection.fingerprints import Fingerprints, fingerprint, stacked
from llava_mole.inspection.known_pictures import KnownPictures
from llava_mole.inspection.parallel import in_order, ranges
from llava_mole.inspection.pictures import content_of, named
from llava_mole.inspection.records import of_error
from llava_mole.inspection.wording import Wordings

_ROWS = 64
_IMAGES = ("image", "image_path")


@dataclass(frozen=True)
class Row:
    """One row: what is asked about which pictures."""

    where: str
    question: str
    options: tuple[str, ...]
    images: tuple[ImageRef, ...]


@dataclass
class Benchmarks:
    """All benchmarks together.

    Attributes:
        places: "file:line" of each row.
        shows: per row, places in `pictures`.
        rows_of: per picture, numbers of the rows that show it.
        summary: per file, {"path", "rows", "pictures", "questions"}.
    """

    places: list[str] = field(default_factory=list)
    shows: list[tuple[int, ...]] = field(default_factory=list)
    rows_of: list[list[int]] = field(default_factory=list)
    wordings: Wordings = field(default_factory=Wordings)
    pictures: KnownPictures = field(default_factory=KnownPictures)
    summary: list[dict[str, str | int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Opened:
    """A benchmark's rows; may be pickled."""

    container: Container
    pictures: Pictures
    source: Source | None
    """where it is no TSV"""

    def rows(self, part: range) -> Iterator[tuple[str, Row | DataError]]:
        if self.source is not None:
            for _, where, sample in self.source.walk(part.start, part.stop):
                if isinstance(sample, DataError):
                    yield where, sample
                    continue
                asked = [t.text.replace(IMAGE, " ") for t in sample.turns if t.role == "user"]
                yield where, Row(where, "\n".join(asked).strip(), (), sample.images)
            return
        for _, where, record in self.container.walk(part.start, part.stop):
            try:
                yield where, record if isinstance(record, DataError) else self._row(record, where)
            except DataError as error:
                yield where, error

    def _row(self, record: dict[str, str], where: str) -> Row:
        cells = {key: cell.strip() for key, cell in record.items()}
        cells = {key: "" if cell in ("NaN", "nan") else cell for key, cell in cells.items()}
        options = tuple(cells[letter] for letter in LETTERS if cells.get(letter))
        shown = next((key for key in _IMAGES if cells.get(key)), None)
        images: tuple[ImageRef, ...] = ()
        if shown == "image":
            images = (self.pictures.find(f"data:;base64,{cells[shown]}", where, shown),)
        elif shown is not None:
            images = (self.pictures.find(cells[shown], where, shown),)
        return Row(where, cells.get("question", ""), options, images)


def read_benchmarks(
    paths: Sequence[str | Path], workers: int = 1, progress: bool = False
) -> tuple[Benchmarks, list[Finding]]:
    """Fingerprints of all pictures and the wording of all questions; and what cannot be read.

    Raises:
        DataError: a file is missing, or is no benchmark.
    """
    out = Benchmarks()
    findings: list[Finding] = []
    prints: list[Fingerprints] = []
    known: dict[bytes, int] = {}
    for path in paths:
        opened = _open(path)
        total = len(opened.container)
        rows = pictures = 0
        questions = len(out.wordings.asked)
        bar = tqdm(total=total, desc=f"benchmark {Path(path).name}", unit="row",
                   disable=not progress)  # fmt: skip
        with bar:
            parts = ranges(total, _ROWS)
            for part, (found, seen) in zip(
                parts, in_order(_read_rows, opened, parts, workers), strict=True
            ):
                for row, digests in found:
                    if isinstance(row, Finding):
                        findings.append(row)
                        continue
                    for digest in digests:
                        if digest not in known:
                            known[digest] = len(prints)
                            prints.append(seen[digest])
                            out.rows_of.append([])
                            pictures += 1
                    number = len(out.places)
                    shown = tuple(dict.fromkeys(known[digest] for digest in digests))
                    for picture in shown:
                        out.rows_of[picture].append(number)
                    out.places.append(row.where)
                    out.shows.append(shown)
                    out.wordings.add(number, row.question, row.options)
                    rows += 1
                bar.update(len(part))
        if opened.container.damage is not None:
            findings.append(of_error(opened.container.damage, str(path), "benchmark-row"))
        asked = len(out.wordings.asked) - questions
        out.summary.append(
            {"path": str(path), "rows": rows, "pictures": pictures, "questions": asked}
        )
    out.pictures = KnownPictures(stacked(prints))
    return out, findings


def _open(path: str | Path) -> _Opened:
    container = open_container(path)
    if not isinstance(container, Tsv):
        source = open_source(SourceSpec(path, language="en"))
        return _Opened(source.container, source.pictures, source)
    if "question" not in container.columns and not set(_IMAGES) & set(container.columns):
        raise DataError(
            f"{path}:1: no column question or image to look for; found "
            f"{', '.join(container.columns)}"
        )
    return _Opened(container, Pictures(Path(path).parent), None)


def _read_rows(
    opened: _Opened, part: range
) -> tuple[list[tuple[Row | Finding, list[bytes]]], dict[bytes, Fingerprints]]:
    """Rows without their pictures' bytes, with digests; digest -> fingerprint."""
    out: list[tuple[Row | Finding, list[bytes]]] = []
    seen: dict[bytes, Fingerprints] = {}
    for where, row in opened.rows(part):
        if isinstance(row, DataError):
            out.append((of_error(row, where, "benchmark-row"), []))
            continue
        digests = []
        for image in row.images:
            try:
                name, content = content_of(image)
                digest = hashlib.sha256(content).digest()
                if digest not in seen:
                    seen[digest] = fingerprint(load_image(named(content, name)), content)
                digests.append(digest)
            except DataError as error:
                out.append((of_error(error, where, "benchmark-row"), []))
        out.append((Row(row.where, row.question, row.options, ()), digests))
    return out, seen


def blank(benchmarks: Benchmarks) -> Iterator[Finding]:
    """A note where pictures can only be found by their bytes or pixels."""
    flat = np.flatnonzero(benchmarks.pictures.prints["flat"])
    if len(flat):
        message = f"{len(flat)} pictures of the benchmarks are of one colour: found by pixels only"
        where = benchmarks.places[benchmarks.rows_of[int(flat[0])][0]]
        yield Finding("note", "benchmark-blank", where, message, len(flat))
