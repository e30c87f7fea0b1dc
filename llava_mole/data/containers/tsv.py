"""Tab-separated files with a header, as MMBench's: cells with tabs or line breaks in double quotes.

A picture is base64 in the `image` cell; a cell of up to 64 characters is the `index` of the row
that holds it, and comes out as that row's picture. Files may be large: rows are found once and read
on demand.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llava_mole.data.containers.base import MAX_RECORD
from llava_mole.data.containers.json_files import TextFile
from llava_mole.data.quoting import short
from llava_mole.errors import DataError

REFERENCE_CHARACTERS = 64
_NONE = -1


class Tsv(TextFile):
    """Rows as `{column: cell}`, every cell a string.

    Raises:
        DataError: no header, or a column twice.
    """

    kind = "TSV"

    def __init__(self, path: Path, cache_dir: Path | None) -> None:
        self._last_picture: tuple[int, str] = (_NONE, "")
        super().__init__(path, cache_dir)
        with path.open("rb") as file:
            file.seek(self._begin)
            lines = (line.decode("utf-8", "replace") for line in file)
            try:
                self.columns: list[str] = next((row for row in _reader(lines) if row), [])
            except csv.Error as error:
                raise DataError(f"{path}:1: not a TSV header ({error})") from error
        if len(set(self.columns)) < max(2, len(self.columns)):
            raise DataError(
                f"{path}:1: expected a header of several columns, each once, separated by tabs; "
                f"found {short(self.columns)}"
            )

    def _scan(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        starts: list[int] = []
        stops: list[int] = []
        lines: list[int] = []
        index_of: dict[str, int] = {}
        holders: dict[str, int] = {}
        references: list[str] = []
        twice: list[int] = []
        index_column = image_column = None
        damage = ""
        with self.path.open("rb") as file, self._bar() as bar:
            place = _Place(file, self._begin)
            # Latin-1 keeps every byte a character: tabs, quotes and breaks are where they were.
            rows = _reader(place.lines())
            header: list[str] | None = None
            while True:
                start, line = place.offset, place.line
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    # A quote that is not closed: what comes behind may be whole.
                    if header is None or not place.next_row(start, line, len(header)):
                        damage = f"{self.path}:{line}: not a TSV row ({error})"
                        break
                    rows, row = _reader(place.lines()), [""]
                if row is None:
                    break
                bar.update(place.offset - start)
                if not row:
                    continue
                if header is None:
                    header = row
                    index_column = row.index("index") if "index" in row else None
                    image_column = row.index("image") if "image" in row else None
                    continue
                number = len(starts)
                starts.append(start)
                stops.append(place.offset)
                lines.append(line)
                name = _cell(row, index_column)
                twice.append(index_of.setdefault(name, number) if name else number)
                image = _cell(row, image_column)
                references.append(image if len(image) <= REFERENCE_CHARACTERS else "")
                if len(image) > REFERENCE_CHARACTERS:
                    holders.setdefault(name, number)
        shown = [holders.get(name, _NONE) for name in references]
        arrays = {
            "starts": np.array(starts, dtype=np.int64),
            "stops": np.array(stops, dtype=np.int64),
            "lines": np.array(lines, dtype=np.int64),
            # first row with this row's index, and the row that holds the picture it refers to
            "first": np.array(twice, dtype=np.int64),
            "shown": np.array(shown, dtype=np.int64),
        }
        return arrays, {"damage": damage}

    def _parse(self, number: int, raw: bytes) -> tuple[str, Any]:
        where = self._at(int(self._arrays["lines"][number]))
        try:
            record = self._cells(number, raw)
            holder = int(self._arrays["shown"][number])
            if holder != _NONE:
                record["image"] = self._picture(holder)
        except DataError as error:
            return where, error
        first = int(self._arrays["first"][number])
        if first != number:
            return where, DataError(
                f"{where}: column index: {short(record.get('index'))} is the row's of line "
                f"{int(self._arrays['lines'][first])} already"
            )
        return where, record

    def _cells(self, number: int, raw: bytes) -> dict[str, str]:
        line = int(self._arrays["lines"][number])
        text = self._text(raw, line, strip=False)[1]
        try:
            cells: list[str] = next(_reader(iter([text])), [])
        except csv.Error as error:
            raise DataError(f"{self._at(line)}: not a TSV row ({error})") from error
        if len(cells) != len(self.columns):
            raise DataError(
                f"{self._at(line)}: {len(cells)} cells, the header has {len(self.columns)} columns"
            )
        return dict(zip(self.columns, cells, strict=True))

    def _picture(self, holder: int) -> str:
        if self._last_picture[0] != holder:
            self._last_picture = (holder, self._cells(holder, self._bytes(holder))["image"])
        return self._last_picture[1]


class _Place:
    """Where in a file its lines have been read up to."""

    def __init__(self, file: BinaryIO, begin: int) -> None:
        file.seek(begin)
        self._file = file
        self.offset = begin
        self.line = 1

    def lines(self) -> Iterator[str]:
        for line in self._file:
            self.offset += len(line)
            self.line += 1
            yield line.decode("latin-1")

    def _go_to(self, offset: int, line: int) -> None:
        self._file.seek(offset)
        self.offset, self.line = offset, line

    def next_row(self, offset: int, line: int, columns: int) -> bool:
        """Go to the first line behind the one at `offset` that begins a row of so many cells; False
        at the end of the file."""
        while True:
            self._go_to(offset, line)
            passed = self._file.readline()
            if not passed:
                return False
            offset, line = offset + len(passed), line + 1
            self._go_to(offset, line)
            try:
                found = len(next(_reader(self.lines()), [])) == columns
            except csv.Error:
                found = False
            if found:
                self._go_to(offset, line)
                return True


def _reader(lines: Iterator[str]) -> Any:
    csv.field_size_limit(MAX_RECORD)  # a cell holds a picture
    return csv.reader(lines, delimiter="\t", strict=True)


def _cell(row: list[str], column: int | None) -> str:
    return row[column].strip() if column is not None and column < len(row) else ""
