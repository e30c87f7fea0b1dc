"""JSON lists and JSONL: indexed once by offset and line, each record read and parsed on demand."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llava_mole.data.containers.base import MAX_RECORD, Container, content_stamp
from llava_mole.data.containers.json_scan import SPACE, Spans, scan_lines, scan_list
from llava_mole.data.index_cache import cached
from llava_mole.data.quoting import short, why
from llava_mole.errors import DataError

CACHED_FROM = 2**24
"""Bytes from which the offsets are kept on disk: below, a scan is as fast as looking them up."""

_BLOCK = 2**22
_TAIL = 2**24
"""Bytes parsed of an item that is left open: one quote too few may swallow the rest of the file."""

_BOM = b"\xef\xbb\xbf"


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that stands in it twice, one would be lost.

    Raises:
        ValueError: it does.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {short(twice)} stands twice in one object")
    return found


class TextFile(Container):
    """Records at known offsets of one file.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Path, cache_dir: Path | None) -> None:
        self.path = path
        with path.open("rb") as file:
            self._begin = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        state = self.state()
        self._stamp = content_stamp(path.stat())
        subject = {"offsets": str(path.resolve()), "kind": self.kind}
        folder = cache_dir if self.size() >= CACHED_FROM else None
        self._arrays, facts = cached(folder, subject, state, self._scan)
        self.damage = DataError(facts["damage"]) if facts["damage"] else None

    @abstractmethod
    def _scan(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays `starts`, `stops`, `lines`, each (n,), perhaps others; and {"damage": text}."""

    @abstractmethod
    def _parse(self, number: int, raw: bytes) -> tuple[str, Any]:
        """('file:line', value or DataError) of a record's bytes."""

    def __len__(self) -> int:
        return len(self._arrays["starts"])

    def files(self) -> Sequence[Path]:
        return [self.path]

    def record(self, number: int) -> Any:
        value = self._parse(number, self._bytes(number))[1]
        if isinstance(value, DataError):
            raise value
        return value

    def where(self, number: int) -> str:
        raw = self._bytes(number)
        skipped = len(raw) - len(raw.lstrip(SPACE))
        return self._at(int(self._arrays["lines"][number]) + raw.count(b"\n", 0, skipped))

    def walk(self, start: int, stop: int) -> Iterator[tuple[int, str, Any]]:
        """Neighbouring records are read together."""
        starts, stops = self._arrays["starts"], self._arrays["stops"]
        while start < stop:
            last = int(np.searchsorted(stops, starts[start] + _BLOCK))
            last = min(max(last, start + 1), stop)
            try:
                begin = int(starts[start])
                block = memoryview(self._read(begin, int(stops[last - 1])))
            except DataError as error:
                for number in range(start, last):
                    yield number, self._at(int(self._arrays["lines"][number])), error
                start = last
                continue
            for number in range(start, last):
                raw = bytes(block[int(starts[number]) - begin : int(stops[number]) - begin])
                yield number, *self._parse(number, raw)
            start = last

    def _bytes(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._read(int(self._arrays["starts"][number]), int(self._arrays["stops"][number]))

    def _read(self, start: int, stop: int) -> bytes:
        # Opened anew each time: nothing is shared between the processes of a data loader.
        try:
            if stop - start > MAX_RECORD:
                line = int(self._arrays["lines"][np.searchsorted(self._arrays["starts"], start)])
                raise DataError(
                    f"{self._at(line)}: a record of {stop - start:,} bytes, at most "
                    f"{MAX_RECORD:,} are read; is a quote or a bracket not closed?"
                )
            with self.path.open("rb") as file:
                if content_stamp(os.fstat(file.fileno())) != self._stamp:
                    raise DataError(
                        f"{self.path}: changed since it was indexed; start again to read it anew"
                    )
                file.seek(start)
                return file.read(stop - start)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({why(error)})") from error

    def _at(self, line: int) -> str:
        return f"{self.path}:{line}"

    def _text(self, raw: bytes, line: int, *, strip: bool = True) -> tuple[int, str]:
        """(line where the text begins, text without the white space around it)."""
        body = raw.lstrip(SPACE) if strip else raw
        line += raw.count(b"\n", 0, len(raw) - len(body))
        try:
            return line, (body.rstrip(SPACE) if strip else body).decode("utf-8")
        except UnicodeDecodeError as error:
            line += body.count(b"\n", 0, error.start)
            raise DataError(
                f"{self._at(line)}: not UTF-8 ({error.reason}); save it as UTF-8"
            ) from error

    def _bar(self) -> tqdm:
        size = self.size()
        return tqdm(
            total=size, desc=f"indexing {self.path.name}", unit="B", unit_scale=True, delay=1
        )


class JsonLines(TextFile):
    """One JSON object a line; blank lines are none."""

    kind = "JSONL"

    def _scan(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        with self.path.open("rb") as file, self._bar() as bar:
            spans = scan_lines(file, self._begin, advance=bar.update)
        return _arrays(spans), {"damage": ""}

    def _parse(self, number: int, raw: bytes) -> tuple[str, Any]:
        line = int(self._arrays["lines"][number])
        where = self._at(line)
        try:
            text = self._text(raw, line)[1]
            return where, json.loads(text, object_pairs_hook=once)
        except DataError as error:
            return where, error
        except (ValueError, RecursionError) as error:
            return where, DataError(
                f"{where}: bad JSON, {error}; found {short(text[:200])}; "
                "expected one whole object a line (or a single JSON list)"
            )


class JsonList(TextFile):
    """One JSON list of objects, however it is laid out."""

    kind = "JSON list"

    def _scan(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        with self.path.open("rb") as file, self._bar() as bar:
            begin, line = _first_bracket(file, self._begin)
            spans = scan_list(file, begin, line, advance=bar.update)
            if spans.closed_by:
                damage = self._after_the_end(file, spans)
            else:
                damage = self._left_open(file, spans)
        arrays = _arrays(spans)
        last = len(spans.starts) - 1
        if spans.closed_by and not self._read_raw(spans, last).strip(SPACE):
            # Nothing before the closing bracket: an empty list, or a comma too many.
            arrays = {name: array[:-1] for name, array in arrays.items()}
            if last > 0:
                damage = f"{self._at(spans.end_line)}: bad JSON, expected an item, found ']'"
        return arrays, {"damage": damage}

    def _read_raw(self, spans: Spans, number: int) -> bytes:
        """A record's bytes, or so many that they are seen not to be blank."""
        start, stop = int(spans.starts[number]), int(spans.stops[number])
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(min(stop - start, MAX_RECORD))

    def _after_the_end(self, file: BinaryIO, spans: Spans) -> str:
        """What is wrong with the closing bracket and what follows; "" if nothing is."""
        if spans.closed_by != "]":
            return (
                f"{self._at(spans.end_line)}: bad JSON, expected ',' or ']' after an item, "
                f"found {spans.closed_by!r}"
            )
        file.seek(spans.end + 1)
        line = spans.end_line
        while chunk := file.read(_BLOCK):
            rest = chunk.lstrip(SPACE)
            line += chunk.count(b"\n", 0, len(chunk) - len(rest))
            if rest:
                return (
                    f"{self._at(line)}: bad JSON, expected nothing after the list's ']', "
                    f"found {short(rest[:40].decode('utf-8', 'replace'))}"
                )
        return ""

    def _left_open(self, file: BinaryIO, spans: Spans) -> str:
        """Why a list that the file's end leaves open does not close."""
        file.seek(spans.end)
        raw = file.read(_TAIL)
        try:
            # The cut at _TAIL may go through a character.
            whole = raw.decode("utf-8", "ignore").encode() if len(raw) == _TAIL else raw
            line, text = self._text(whole, spans.end_line)
        except DataError as error:
            return str(error)
        expected = "an item"
        if text:
            value = self._decode(text, line, self._at(line))
            if isinstance(value, DataError):
                return str(value)
            expected = "',' or ']' after an item"
        end = spans.end_line + raw.count(b"\n")
        return f"{self._at(end)}: bad JSON, expected {expected}, found the end of the file"

    def _parse(self, number: int, raw: bytes) -> tuple[str, Any]:
        line = int(self._arrays["lines"][number])
        try:
            line, text = self._text(raw, line)
        except DataError as error:
            return self._at(line) + self._which(number, raw), error
        where = self._at(line) + self._which(number, raw)
        return where, self._decode(text, line, where)

    def where(self, number: int) -> str:
        return super().where(number) + self._which(number, self._bytes(number))

    def _which(self, number: int, raw: bytes) -> str:
        """' (item 9)' where the item begins in the line in which the one before it ends."""
        before = raw[: len(raw) - len(raw.lstrip(SPACE))]
        return f" (item {number + 1})" if number and b"\n" not in before else ""

    def _decode(self, text: str, line: int, where: str) -> Any:
        """The value of one item's text, or the DataError that says why it has none."""
        if not text:
            return DataError(f"{where}: bad JSON, expected an item, found nothing between commas")
        try:
            return json.loads(text, object_pairs_hook=once)
        except RecursionError:
            return DataError(f"{where}: bad JSON, expected less deeply nested brackets")
        except json.JSONDecodeError as error:
            at = self._at(line + error.lineno - 1)
            if error.msg == "Extra data":
                found = short(text[error.pos : error.pos + 40])
                return DataError(
                    f"{at}: bad JSON, expected ',' or ']' after an item, found {found}"
                )
            return DataError(
                f"{at}: bad JSON, {error.msg} "
                f"(column {error.colno}, in the item that begins at line {line})"
            )
        except ValueError as error:  # a number of thousands of digits
            return DataError(f"{where}: bad JSON, {error}")


def _arrays(spans: Spans) -> dict[str, NDArray[Any]]:
    return {"starts": spans.starts, "stops": spans.stops, "lines": spans.lines}


def _first_bracket(file: BinaryIO, begin: int) -> tuple[int, int]:
    """(offset, line) of the list's '[', which stands behind nothing but white space."""
    file.seek(begin)
    line = 1
    while chunk := file.read(_BLOCK):
        rest = chunk.lstrip(SPACE)
        line += chunk.count(b"\n", 0, len(chunk) - len(rest))
        if rest:
            return begin + len(chunk) - len(rest), line
        begin += len(chunk)
    raise DataError("no list in this file")
